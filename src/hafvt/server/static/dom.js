// Building blocks. Text from the server only ever becomes text nodes and attributes, never markup.

import { apiKey, fetchPicture } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  add: "M12 5v14M5 12h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  earlier: "M14.5 6l-6 6 6 6",
  later: "M9.5 6l6 6-6 6",
  theme: "M20 14.5A8.2 8.2 0 0 1 9.5 4 8.2 8.2 0 1 0 20 14.5z",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  similar: "M4 4h7v7H4zM13 13h7v7h-7zM17.5 4v6M14.5 7h6",
  hide: "M4 4l16 16M9.5 5.4A9.6 9.6 0 0 1 21.5 12a11 11 0 0 1-2.6 3.6M6.2 7.2A11.6 11.6 0 0 0 2.5 12a9.7 9.7 0 0 0 13 5.7",
  open: "M14 4h6v6M20 4l-9 9M18 14v6H4V6h6",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7l-1 1M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7l1-1",
};

export const byId = (id) => document.getElementById(id);
const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Returns an HTML element; a function among the attributes listens to the event of its name. */
export const element = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);

/** Returns an SVG element. */
export const drawing = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const icon = (name) =>
  drawing("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, drawing("path", { d: ICONS[name] }));

/** Returns the title of an item, or its id if it has none. */
export const itemName = (item) => item.title?.trim() || `item ${item.item_id}`;

/** Returns an element with the name of an item, which cannot change the direction of the text around it. */
export const nameElement = (item) => element("bdi", { dir: "auto" }, itemName(item));

const initials = (text) =>
  text.split(/\s+/).map((word) => Array.from(word.replace(/^[^\p{L}\p{N}]+/u, ""))[0] ?? "").join("").slice(0, 2)
    .toUpperCase() || "?";

/** Returns the picture of an item, or its initials if it has none or the picture does not load. */
export function itemPicture(item, color, side = 160) {
  const frame = element("span", { class: `picture ${color}`, "aria-hidden": "true" });
  const blank = () => element("span", { class: "blank" }, initials(itemName(item)));
  if (!item.picture) {
    frame.append(blank());
    return frame;
  }
  const src = `/pictures/${encodeURIComponent(item.item_id)}?side=${side}`;
  if (apiKey()) {
    fetchPicture(src).then(
      (canvas) => {
        frame.append(canvas);
        fitToFrame(canvas, canvas.width, canvas.height);
      },
      () => frame.append(blank()),
    );
    return frame;
  }
  const image = element("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false", src,
    error: () => image.replaceWith(blank()), load: () => fitToFrame(image, image.naturalWidth, image.naturalHeight) });
  frame.append(image);
  return frame;
}

let frameRatio = 0; // width by height of all frames: that of the first picture

function fitToFrame(image, width, height) {
  const ratio = width / height || 1;
  if (!frameRatio) {
    frameRatio = Math.min(1, Math.max(2 / 3, ratio));
    document.documentElement.style.setProperty("--shape", frameRatio);
  }
  image.classList.toggle("fills", Math.abs(ratio / frameRatio - 1) < 0.15);
}

/** Announces a change to users of screen readers. */
export function announce(text) {
  byId("announcement").textContent = text;
}

/** Returns one line with an error and a button that tries again; the focus then goes to the heading of the section. */
export function errorLine(error, retry) {
  const line = element(
    "p",
    { class: "problem", role: "alert" },
    element("span", { dir: "auto" }, error.message || "Something went wrong."),
    element("button", { type: "button", class: "button", click: () => {
      const section = line.closest("[aria-labelledby]:is(section, aside)");
      (section ? byId(section.getAttribute("aria-labelledby")) : document.querySelector("h1")).focus();
      retry();
    } }, "Try again"),
  );
  return line;
}

const MAX_ANIMATED = 60; // children of a container; more would keep the browser busy

/**
 * Makes `children` the children of a container, in this order; those that stay glide to their new places.
 * Moves as few as possible. The focus stays; if its child leaves, it goes to the child in that place.
 */
export function arrangeChildren(container, children) {
  const isAnimated = !prefersReducedMotion() && children.length <= MAX_ANIMATED;
  const oldChildren = [...container.children];
  const oldBoxes = new Map(isAnimated ? oldChildren.map((child) => [child, child.getBoundingClientRect()]) : []);
  const focused = container.contains(document.activeElement) ? document.activeElement : null;
  const focusedIndex = oldChildren.findIndex((child) => child.contains(focused));
  const wanted = new Set(children);
  for (const child of oldChildren) if (!wanted.has(child)) child.remove();
  children.forEach((child, index) => {
    if (container.children[index] !== child) container.insertBefore(child, container.children[index] ?? null);
  });
  if (focused && focused !== document.activeElement) {
    const target = focused.isConnected && !focused.disabled
      ? focused
      : children[Math.min(focusedIndex, children.length - 1)]?.querySelector(".main");
    target?.focus({ preventScroll: true });
  }
  if (!isAnimated) return;
  const newBoxes = children.map((child) => child.getBoundingClientRect()); // all before the first animation
  children.forEach((child, index) => {
    const oldBox = oldBoxes.get(child);
    const box = newBoxes[index];
    const frames = oldBox
      ? [{ transform: `translate(${oldBox.left - box.left}px, ${oldBox.top - box.top}px)` }, { transform: "none" }]
      : [{ opacity: 0, transform: "scale(.94)" }, { opacity: 1, transform: "none" }];
    if (!oldBox || Math.abs(oldBox.left - box.left) + Math.abs(oldBox.top - box.top) > 1)
      child.animate(frames, { duration: 320, easing: "cubic-bezier(.2, .8, .2, 1)" });
  });
}

/**
 * Makes one entry of a list the only tab stop; arrow keys, Home and End move between entries (roving tabindex).
 * All buttons of that entry can be reached by tab.
 * @param {Element} container of <li>, each with a `.main` button
 * @returns {(entry?: Element) => void} updates the tab stop after entries have changed; `entry` is the new stop
 */
export function roveFocus(container) {
  const mainButtons = () => [...container.querySelectorAll(":scope > li .main")];
  let current = null;
  function updateTabStop(entry = current) {
    const all = mainButtons();
    current = all.includes(entry) ? entry : (all.find((main) => main.contains(document.activeElement)) ?? all[0]);
    for (const main of all)
      for (const button of main.closest("li").querySelectorAll("button")) button.tabIndex = main === current ? 0 : -1;
  }
  container.addEventListener("focusin", (event) => {
    const main = event.target.closest("li")?.querySelector(".main");
    if (main && main !== current) updateTabStop(main);
  });
  container.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.target.matches(".main")) return;
    const next = neighbor(mainButtons(), event.target, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return updateTabStop;
}

function neighbor(all, current, key) {
  const index = all.indexOf(current);
  if (key === "ArrowLeft") return all[index - 1];
  if (key === "ArrowRight") return all[index + 1];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const box = current.getBoundingClientRect();
  const direction = key === "ArrowDown" ? 1 : -1;
  let nearest = null;
  let minDistance = Infinity;
  for (const other of all) {
    const otherBox = other.getBoundingClientRect();
    const vertical = direction * (otherBox.top - box.top);
    const distance = vertical + Math.abs(otherBox.left - box.left) / 100; // the next row first, then the column
    if (vertical > 4 && distance < minDistance) [nearest, minDistance] = [other, distance];
  }
  return nearest;
}
