// A menu of actions for an item, below the button that opens it.

import { byId, element, icon } from "./dom.js";

/**
 * Opens the menu.
 * @param {Element} opener the button that was pressed; has the focus again when the menu is closed
 * @param {Node | string} title
 * @param {({label: string, icon: string, run: () => void, disabled?: boolean} | {label: string, href: string, icon:
 *   string} | null)[]} actions null is left out
 */
export function openMenu(opener, title, actions) {
  const menu = byId("menu");
  if (menu.matches(":popover-open")) menu.hidePopover();
  const entries = actions.filter(Boolean).map(({ label, icon: name, run, href, disabled }) => (href
    ? element("a", { href, target: "_blank", rel: "noopener noreferrer" }, icon(name), label)
    : element("button", { type: "button", disabled: Boolean(disabled), click: () => {
      menu.hidePopover();
      opener.focus({ preventScroll: true });
      run();
    } }, icon(name), label)));
  menu.replaceChildren(element("h3", { id: "menu-title" }, title), ...entries);
  opener.focus({ preventScroll: true }); // some browsers do not focus a pressed button; the focus returns here
  menu.showPopover();
  const box = opener.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = menu;
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
  const below = box.bottom + 6;
  const top = below + height > innerHeight - 8 ? Math.max(8, box.top - height - 6) : below;
  menu.style.top = `${top + scrollY}px`;
  entries.find((entry) => !entry.disabled)?.focus({ preventScroll: true });
}

/** Lets arrow keys move through the menu. */
export function startMenu() {
  const menu = byId("menu");
  menu.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const entries = [...menu.querySelectorAll("a, button:enabled")];
    entries.at((entries.indexOf(document.activeElement) + step) % entries.length).focus();
  });
}
