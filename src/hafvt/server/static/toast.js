// A short message at the bottom of the page, with a button that undoes what it tells of.

import { byId, element } from "./dom.js";

const SHOWN_MS = 8000;
let timer;

/** Shows a message; `undo` is called by its button, without it there is none. */
export function showToast(text, undo) {
  const toast = byId("toast");
  clearTimeout(timer);
  const button = undo && element("button", { type: "button", click: () => {
    hideToast();
    undo();
  } }, "Undo");
  toast.hidden = false;
  toast.replaceChildren(element("span", { dir: "auto" }, text), ...(button ? [button] : []));
  const hideLater = () => {
    clearTimeout(timer);
    timer = setTimeout(() => (toast.matches(":hover, :focus-within") ? hideLater() : hideToast()), SHOWN_MS);
  };
  hideLater();
}

export function hideToast() {
  const toast = byId("toast");
  clearTimeout(timer);
  if (toast.contains(document.activeElement)) byId("history-title").focus();
  toast.hidden = true;
}
