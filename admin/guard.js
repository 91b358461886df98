// The view of who is kept out: the guard's level, security events by kind, and blocked networks.

import { at, fill, keep, make, write } from "./dom.js";
import { ask, attempt, tell } from "./dialog.js";
import { count, moment, words } from "./units.js";

const PAGE = 100;
const LEVELS = {
  normal: { look: "good", says: "Nobody floods the relay with handshakes." },
  retry: { look: "warn", says: "A flood of handshakes: whoever comes has to show first that the address is theirs." },
  silence: { look: "bad", says: "A heavy flood of handshakes: addresses without a proof are not answered at all." },
};

let session = null;
/** How many blocks are to be shown. */
let most = PAGE;

/** Listens to what people do; `it` has the `api`; `refresh()` asks anew. */
export function begin(it) {
  session = it;
  at("block").addEventListener("submit", add);
  at("blocks-more").addEventListener("click", () => {
    most += PAGE;
    session.refresh();
  });
}

/** Shows what `admin/stats` says of the guard. */
export function showStats({ guard, security_events }) {
  const { look, says } = LEVELS[guard.level] ?? { look: "", says: "" };
  at("level").className = `badge ${look}`;
  write(at("level"), words(guard.level));
  write(at("level-says"), says);
  const kinds = Object.entries(security_events).sort(([, a], [, b]) => b - a);
  fill(at("security"), kinds.map(([kind, number]) => [kind, count(number)]));
}

/** Asks for the blocks, page by page, and shows them. */
export async function update() {
  const blocks = [];
  let total = 0;
  let cursor = null;
  do {
    const page = await session.api.get("admin/blocks", { limit: String(PAGE), cursor });
    blocks.push(...page.blocks);
    total = page.total;
    cursor = page.next;
  } while (cursor !== null && blocks.length < most);
  keep(at("blocks"), blocks, ({ network, configured }) => `${network} ${configured}`, createRow, updateRow);
  at("blocks-empty").hidden = blocks.length > 0;
  write(at("blocks-empty"), "Nobody is kept out.");
  write(at("blocks-shown"), blocks.length < total ? `${count(blocks.length)} of ${count(total)}` : count(total));
  at("blocks-more").hidden = cursor === null;
}

/** Nothing is known any more. */
export function forget() {
  most = PAGE;
  for (const id of ["blocks", "security"]) at(id).replaceChildren();
  at("block").reset();
  at("level").className = "badge";
  write(at("level"), "–");
  write(at("level-says"), "\u00a0");
  at("block-said").hidden = true;
  write(at("block-said"), "");
  write(at("blocks-shown"), "");
  write(at("blocks-empty"), "Asking …");
  at("blocks-empty").hidden = false;
}

function createRow({ network, configured }) {
  const cell = make("td");
  if (!configured) {
    const button = make("button", { type: "button", class: "small danger act", "aria-label": `Unblock … ${network}` });
    button.append("Unblock …");
    button.disabled = session.readOnly();
    button.addEventListener("click", () => askUnblock(network));
    cell.append(button);
  }
  return make("tr", {}, make("th", { scope: "row" }), make("td", { class: "wrap" }), make("td"), cell);
}

function updateRow(row, { network, reason, expires_at_unix, configured }) {
  write(row.cells[0], network);
  write(row.cells[1], reason || "–");
  const end = expires_at_unix === null ? "it is removed" : moment(expires_at_unix * 1000);
  write(row.cells[2], configured ? "the configuration changes" : end);
}

function add(event) {
  event.preventDefault();
  const block = async () => {
    const secs = at("block-for").value;
    const wanted = { network: at("block-network").value.trim(), reason: at("block-reason").value.trim() };
    if (secs !== "") wanted.expires_in_secs = Number(secs);
    const added = await session.api.post("admin/blocks", wanted);
    tell(`${added.network} is kept out.`);
    // An empty field is no fault of whoever has not begun to write.
    at("block").reset();
    session.refresh();
  };
  attempt(at("block-add"), at("block-said"), block, () => !session.readOnly());
}

function askUnblock(network) {
  write(at("unblock-network"), network);
  ask(at("ask-unblock"), async () => {
    try {
      await session.api.delete("admin/blocks", { network });
      tell(`${network} may come again.`);
    } catch (error) {
      if (error.kind !== "missing") throw error;
      tell(`${network} was not kept out any more.`);
    }
    session.refresh();
  });
}
