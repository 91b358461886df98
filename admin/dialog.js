// Asks before something is done that cannot be undone, and says at the end of the page what was done.

import { at, write } from "./dom.js";

/** How long a message stays. */
const TOLD_MS = 6000;

/**
 * Shows a dialog until it is cancelled, or until `act` has done what it asks about. While `act` is at it the dialog
 * says so; when it throws, the dialog says why and stays. Where it is cancelled meanwhile, `act` goes on, and what comes
 * of it does nothing to the dialog, which may ask about something else by then.
 */
export function ask(dialog, act) {
  const form = dialog.querySelector("form");
  const said = dialog.querySelector(".said");
  const button = dialog.querySelector("[type=submit]");
  const label = (button.dataset.label ??= button.textContent);
  const submit = async (event) => {
    event.preventDefault();
    write(button, "One moment …");
    const asks = () => form.onsubmit === submit;
    const done = async () => {
      await act();
      if (asks()) dialog.close();
    };
    await attempt(button, said, done, () => true, asks);
    if (asks()) write(button, label);
  };
  form.onsubmit = submit;
  said.hidden = true;
  button.disabled = false;
  write(button, label);
  dialog.querySelector(".cancel").onclick = () => dialog.close();
  dialog.showModal();
  dialog.querySelector(".first").focus();
}

/**
 * Does what a button is for. Meanwhile it cannot be pressed again; where `act` throws, `said` says why, unless to somebody
 * who has signed out. `mayAgain` tells whether the button can be pressed afterwards, and `theirs` whether both are still
 * there for this.
 */
export async function attempt(button, said, act, mayAgain = () => true, theirs = () => true) {
  const focused = document.activeElement === button;
  button.disabled = true;
  said.hidden = true;
  try {
    await act();
  } catch (error) {
    if (error.kind === "over" || !theirs()) return;
    said.hidden = false;
    write(said, error.message);
  } finally {
    if (theirs()) {
      button.disabled = !mayAgain();
      // A button that cannot be pressed loses it.
      if (focused && document.activeElement === document.body) button.focus();
    }
  }
}

/** Closes whatever is asked at the moment. */
export function closeAll() {
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
}

let timer = null;

/** Says for a few seconds what has been done. */
export function tell(text) {
  const told = at("told");
  clearTimeout(timer);
  told.hidden = false;
  write(told, text);
  timer = setTimeout(() => (told.hidden = true), TOLD_MS);
}
