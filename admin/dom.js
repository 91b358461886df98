// What the pages do to their elements. Text from elsewhere only ever becomes text: nothing here makes markup of it.

export const at = (id) => document.getElementById(id);

/** Touches the page only where it changes: selections survive, and screen readers are left in peace. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The same for an attribute; null takes it away. */
export function mark(element, name, value) {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** A new element with attributes, and with children: elements, or strings for text. */
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Makes a table's body hold these rows of texts; the first cell of each is its heading. */
export function fill(body, rows) {
  const none = rows.length === 0;
  if (none) rows = [["None so far"]];
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    while (row.cells.length > cells.length) row.deleteCell(-1);
    cells.forEach((text, column) => {
      const cell = row.cells[column] ?? row.appendChild(document.createElement(column === 0 ? "th" : "td"));
      if (column === 0) cell.scope = "row";
      write(cell, text);
    });
    row.className = none ? "none" : "";
    row.cells[0].colSpan = none ? body.parentElement.rows[0].cells.length : 1;
  });
}

/**
 * Makes an element hold one child for each item, in their order. A child stays while its item's key does, so that
 * focus and selections survive; `create(item)` makes one, `update(child, item)` shows the item in it. The focus of a child
 * that goes passes to the first button of the one in its place.
 */
export function keep(parent, items, key, create, update) {
  const keys = new Set(items.map(key));
  const known = new Map();
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const place = [...parent.children].findIndex((child) => child.contains(focused));
  for (const child of [...parent.children]) {
    if (keys.has(child.dataset.key)) known.set(child.dataset.key, child);
    else child.remove();
  }
  items.forEach((item, index) => {
    const name = key(item);
    let child = known.get(name);
    if (!child) {
      child = create(item);
      child.dataset.key = name;
    }
    update(child, item);
    if (parent.children[index] !== child) parent.insertBefore(child, parent.children[index] ?? null);
  });
  if (!focused) return;
  // What is moved loses it. What has gone leaves it to what is there now, or whoever uses a keyboard begins at the top.
  const next = parent.children[Math.min(place, parent.children.length - 1)]?.querySelector("button");
  const to = focused.isConnected ? focused : (next ?? parent.closest("[tabindex]"));
  if (document.activeElement !== to) to?.focus({ preventScroll: true });
}

/** Makes a description list hold these entries, `{label, text, alarm}`, whose number does not shrink. */
export function list(element, entries) {
  while (element.children.length < entries.length) {
    element.append(make("div", {}, make("dt"), make("dd")));
  }
  entries.forEach(({ label, text, alarm = false }, index) => {
    const [term, description] = element.children[index].children;
    write(term, label);
    write(description, text);
    element.children[index].classList.toggle("alarm", alarm);
  });
}
