// Building blocks. What the server says only ever becomes text: nothing here reads markup.

import { drawn, key } from "./api.js";

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  add: "M12 5v14M5 12h14",
  check: "M5 12.5l4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6L6 18",
  earlier: "M14.5 6l-6 6 6 6",
  later: "M9.5 6l6 6-6 6",
  theme: "M20 14.5A8.2 8.2 0 0 1 9.5 4 8.2 8.2 0 1 0 20 14.5z",
  link: "M10 14a4 4 0 0 0 6 .4l3-3a4 4 0 0 0-5.7-5.7l-1 1M14 10a4 4 0 0 0-6-.4l-3 3a4 4 0 0 0 5.7 5.7l1-1",
};

export const byId = (id) => document.getElementById(id);
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Makes an element; a function among the attributes listens to the event of its name. */
export const el = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

/** Makes an element of a drawing. */
export const draw = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

export const icon = (name) =>
  draw("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, draw("path", { d: ICONS[name] }));

/** Returns what people call an item. */
export const nameOf = (item) => item.title?.trim() || `item ${item.item_id}`;

/** Returns a name that neither acts as markup nor turns the direction of what surrounds it. */
export const named = (item) => el("bdi", { dir: "auto" }, nameOf(item));

const initials = (text) =>
  text.split(/\s+/).map((word) => Array.from(word.replace(/^[^\p{L}\p{N}]+/u, ""))[0] ?? "").join("").slice(0, 2)
    .toUpperCase() || "?";

/** Returns the picture of an item, or its initials where it has none or it does not load. */
export function picture(item, hue, side = 160) {
  const frame = el("span", { class: `picture ${hue}`, "aria-hidden": "true" });
  const blank = () => el("span", { class: "blank" }, initials(nameOf(item)));
  if (!item.picture) {
    frame.append(blank());
    return frame;
  }
  const src = `/pictures/${encodeURIComponent(item.item_id)}?side=${side}`;
  if (key()) {
    drawn(src).then(
      (canvas) => {
        frame.append(canvas);
        fit(canvas, canvas.width, canvas.height);
      },
      () => frame.append(blank()),
    );
    return frame;
  }
  const image = el("img", { alt: "", loading: "lazy", decoding: "async", draggable: "false", src,
    error: () => image.replaceWith(blank()), load: () => fit(image, image.naturalWidth, image.naturalHeight) });
  frame.append(image);
  return frame;
}

let shape = 0; // width by height of all frames: that of the first picture

function fit(image, width, height) {
  const own = width / height || 1;
  if (!shape) {
    shape = Math.min(1, Math.max(2 / 3, own));
    document.documentElement.style.setProperty("--shape", shape);
  }
  image.classList.toggle("fills", Math.abs(own / shape - 1) < 0.15);
}

/** Tells people who listen rather than look. */
export function say(text) {
  byId("said").textContent = text;
}

/** Shows in one line what went wrong, with a way to try again. */
export function trouble(problem, retry) {
  return el(
    "p",
    { class: "problem", role: "alert" },
    el("span", { dir: "auto" }, problem.message || "Something went wrong."),
    el("button", { type: "button", class: "button", click: retry }, "Try again"),
  );
}

/**
 * Puts children into a container in their order; those that were there before glide to their new places.
 * Only what must move is moved, and the focus stays where it is.
 */
export function arrange(container, children) {
  const before = new Map([...container.children].map((child) => [child, child.getBoundingClientRect()]));
  const focused = document.activeElement;
  const kept = new Set(children);
  for (const child of before.keys()) if (!kept.has(child)) child.remove();
  children.forEach((child, place) => {
    if (container.children[place] !== child) container.insertBefore(child, container.children[place] ?? null);
  });
  if (container.contains(focused) && focused !== document.activeElement) focused.focus({ preventScroll: true });
  if (still()) return;
  for (const child of children) {
    const old = before.get(child);
    const now = child.getBoundingClientRect();
    const frames = old
      ? [{ transform: `translate(${old.left - now.left}px, ${old.top - now.top}px)` }, { transform: "none" }]
      : [{ opacity: 0, transform: "scale(.94)" }, { opacity: 1, transform: "none" }];
    if (!old || Math.abs(old.left - now.left) + Math.abs(old.top - now.top) > 1)
      child.animate(frames, { duration: 320, easing: "cubic-bezier(.2, .8, .2, 1)" });
  }
}

/**
 * Makes one of many entries the only stop of the tab key; arrows, Home and End walk between them. All buttons
 * of that entry can be reached from it.
 * @param {Element} container of <li>, each with a `.main` button
 * @returns {(entry?: Element) => void} to call when entries have changed, with the one to stop at
 */
export function rove(container) {
  const mains = () => [...container.querySelectorAll(":scope > li .main")];
  let current = null;
  function settle(entry = current) {
    const all = mains();
    current = all.includes(entry) ? entry : (all.find((main) => main.contains(document.activeElement)) ?? all[0]);
    for (const main of all)
      for (const button of main.closest("li").querySelectorAll("button")) button.tabIndex = main === current ? 0 : -1;
  }
  container.addEventListener("focusin", (event) => {
    const main = event.target.closest("li")?.querySelector(".main");
    if (main && main !== current) settle(main);
  });
  container.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || !event.target.matches(".main")) return;
    const next = neighbor(mains(), event.target, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return settle;
}

function neighbor(all, from, key) {
  const place = all.indexOf(from);
  if (key === "ArrowLeft") return all[place - 1];
  if (key === "ArrowRight") return all[place + 1];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (key !== "ArrowUp" && key !== "ArrowDown") return null;
  const here = from.getBoundingClientRect();
  const down = key === "ArrowDown" ? 1 : -1;
  let best = null;
  let least = Infinity;
  for (const other of all) {
    const there = other.getBoundingClientRect();
    const rows = down * (there.top - here.top);
    const far = rows + Math.abs(there.left - here.left) / 100; // the next row first, in it the nearest
    if (rows > 4 && far < least) [best, least] = [other, far];
  }
  return best;
}
