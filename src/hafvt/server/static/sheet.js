// The sheet: on small screens a panel opens as a dialog over the page, which keeps and returns the focus.

import { byId } from "./dom.js";

const place = document.createComment("the panel of the sheet"); // where the open panel belongs
let onClosed = null;

/** Returns whether a panel, "finder" or "explanation", has no room beside the recommendations. */
export const opensAsSheet = (id) => getComputedStyle(byId("main")).getPropertyValue(`--${id}`).trim() === "sheet";

/** Opens a panel in the sheet; `onClose` is called when the sheet closes, by whatever means. */
export function openSheet(panel, onClose) {
  const sheet = byId("sheet");
  if (sheet.open) {
    if (sheet.contains(panel)) return;
    closeSheet();
  }
  onClosed = onClose;
  panel.before(place);
  sheet.append(panel);
  sheet.setAttribute("aria-labelledby", panel.getAttribute("aria-labelledby"));
  sheet.showModal();
}

/** Closes the sheet, if it is open; the focus returns to where it was. */
export function closeSheet() {
  const sheet = byId("sheet");
  if (!sheet.open) return;
  sheet.close();
  putBack();
}

function putBack() {
  if (!place.isConnected) return;
  place.replaceWith(byId("sheet").firstElementChild);
  const callback = onClosed;
  onClosed = null;
  callback?.();
}

/** Closes the sheet where its panel has room again, by a tap outside, and puts the panel back after Escape. */
export function startSheet() {
  const sheet = byId("sheet");
  sheet.addEventListener("close", putBack);
  sheet.addEventListener("click", (event) => {
    if (event.target === sheet) closeSheet(); // the panel covers the sheet: this is the backdrop
  });
  window.addEventListener("resize", () => {
    if (sheet.open && !opensAsSheet(sheet.firstElementChild.id)) closeSheet();
  });
}
