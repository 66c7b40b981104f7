// The buttons of the header: theme, and copying the link.

import { announce, byId, icon } from "./dom.js";

/** Makes the buttons work. */
export function startHeader() {
  makeThemeButton();
  byId("copy-link").prepend(icon("link"));
  byId("copy-link").addEventListener("click", copyLink);
}

function makeThemeButton() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const update = () => button.setAttribute("aria-pressed", isDark());
  button.append(icon("theme"));
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    update();
  });
  system.addEventListener("change", update);
  update();
}

async function copyLink() {
  const word = byId("copy-link").querySelector(".word");
  try {
    await navigator.clipboard.writeText(location.href);
    word.textContent = "Copied";
  } catch {
    word.textContent = "Copy the address"; // pages without https may not write to the clipboard
  }
  announce(word.textContent);
  setTimeout(() => (word.textContent = "Copy link"), 2000);
}
