// The page: what it shows follows from a history, a domain and a number, which the address keeps.

import { ask, calm, latest } from "./api.js";
import { makeCards } from "./cards.js";
import { byId, el, icon, nameOf, say, trouble } from "./dom.js";
import { domainChoice, makeFinder } from "./finder.js";
import { count, hueOf, meet, model } from "./model.js";
import * as state from "./state.js";
import { thread } from "./threads.js";
import { makeTimeline } from "./timeline.js";
import { makeWhy } from "./why.js";

const WIDE = matchMedia("(min-width: 1280px)"); // the finder has a column of its own
const SHEET = matchMedia("(max-width: 999px)"); // the explanation covers the lower half

const view = { person: null, history: [], domain: "", k: 10 }; // history: entries {item}
let answer = { items: [], ranked_by: "model", unknown_ids: [] };
let shown = null; // the recommendation that is explained
let pinned = false; // whether it stays when the pointer moves on
let told = null; // the explanation of it
let branch = null; // the part of it whose attention is shown
let chooseDomain;

const timeline = makeTimeline((history) => edit(history), () => openFinder(true));
const finder = makeFinder({ toggle, person: (id) => start({ person: id, history: [] }) });
const cards = makeCards({ point, choose, add });
const why = makeWhy({ close, add, branch: (one) => look((branch = one)) });

const ids = () => view.history.map((entry) => entry.item.item_id);
const whose = () => (view.person === null ? "your" : "their");
const keep = () => state.write({ ...view, history: ids(), why: pinned && shown ? shown.item_id : null });

// ---- the history

/** Takes another history, made by hand. */
function edit(history) {
  view.history = history;
  view.person = null;
  render();
}

function add(item) {
  edit([...view.history, { item }]);
  say(`${nameOf(item)} added, ${count(view.history.length, "item")}`);
}

function toggle(item) {
  const left = view.history.filter((entry) => entry.item.item_id !== item.item_id);
  if (left.length === view.history.length) return add(item);
  edit(left);
  say(`${nameOf(item)} removed, ${count(left.length, "item")} left`);
}

function render() {
  timeline.show(view.history, view.person);
  finder.hold(ids());
  keep();
  recommend();
}

/** Starts from a person, or from items by their ids. */
const start = latest(async (signal, { person, history }) => {
  const complain = (problem) => {
    byId("history-about").replaceChildren(trouble(problem, () => start({ person, history })));
  };
  try {
    if (person !== null) {
      const found = await ask(`/users/${encodeURIComponent(person)}`, { signal });
      Object.assign(view, { person: found.user_id, history: found.history.map((item) => ({ item })) });
    } else {
      const items = await Promise.all(history.map((id) => itemOf(id, signal)));
      Object.assign(view, { person: null, history: items.map((item) => ({ item })) });
    }
  } catch (problem) {
    if (signal.aborted) throw problem;
    complain(problem);
    if (!answer.items.length) recommend();
    return;
  }
  render();
});

async function itemOf(id, signal) {
  try {
    const item = await ask(`/items/${encodeURIComponent(id)}`, { signal });
    if (item.item_id === id) return item;
  } catch (problem) {
    if (!(problem.status < 500) || problem.status === 429) throw problem; // else there is no such item
  }
  return { item_id: id, title: null, domain: "", picture: null, train_count: 0, unknown: true };
}

// ---- the recommendations

const recommend = latest(async (signal) => {
  const asked = { history: ids(), domain: view.domain, k: view.k, include_shares: model.can_explain };
  cards.wait(view.k);
  try {
    answer = await ask("/recommend", { body: asked, signal });
  } catch (problem) {
    if (signal.aborted) throw problem;
    answer = { items: [], ranked_by: "model", unknown_ids: [] };
    explainNothing();
    byId("next-about").textContent = "";
    cards.fail(trouble(problem, recommend));
    return;
  }
  cards.show(answer.items, whose());
  tell();
  const wanted = answer.items.find((item) => item.item_id === (wish ?? shown?.item_id));
  pinned = Boolean(wanted) && (pinned || wish !== null);
  wish = null;
  if (answer.items.length) explain(wanted ?? answer.items[0]);
  else explainNothing();
});
let wish = null; // the id that the address wants explained

function tell() {
  const read = view.history.length - answer.unknown_ids.length;
  const skipped = answer.unknown_ids.length ? ` ${count(answer.unknown_ids.length, "id")} not in the catalog, skipped.` : "";
  const based = answer.ranked_by === "popularity"
    ? `${view.history.length ? "Nothing of the history is known here" : "No history yet"}: what is most popular in ${view.domain}.`
    : `The ${answer.items.length} best of ${view.domain} after ${count(Math.min(read, model.max_length), "item")}.`;
  byId("next-about").textContent = answer.items.length ? based + skipped : `Nothing is left to recommend in ${view.domain}.`;
}

// ---- why

function explainNothing() {
  shown = null;
  pinned = false;
  told = null;
  why.hide();
  look();
}

/** Shows why an item is recommended: at once by its shares, and by attention when the answer is there. */
const explain = latest(async (signal, item) => {
  if (shown?.item_id !== item.item_id) told = null;
  shown = item;
  branch = null;
  cards.mark(item.item_id, pinned);
  const rank = 1 + answer.items.indexOf(item);
  why.show(item, { rank, by: answer.ranked_by, whose: whose(), pinned });
  keep();
  if (!item.shares) {
    told = null;
    return look();
  }
  try {
    told = await ask("/explain", { body: { history: ids(), item: item.item_id }, signal });
  } catch (problem) {
    if (signal.aborted) throw problem;
    told = null;
    look();
    return why.fail(trouble(problem, () => explain(item)));
  }
  look();
});

function point(item) {
  if (pinned || SHEET.matches || shown?.item_id === item.item_id) return drawThreads();
  explain(item);
}

function choose(item) {
  pinned = !(pinned && shown?.item_id === item.item_id);
  explain(item);
  if (pinned && SHEET.matches) byId("why-title").focus({ preventScroll: true });
  if (pinned) say(`Explanation of ${nameOf(item)} opened`);
}

function close() {
  const inside = byId("why").contains(document.activeElement);
  pinned = false;
  why.pin(false);
  if (shown) cards.mark(shown.item_id, false);
  if (inside && shown) cards.cardOf(shown.item_id)?.querySelector(".main").focus();
  keep();
}

/** Returns the entries that the model read, each with its part in the explanation, by sequence. */
function looks() {
  if (!told) return [];
  const known = view.history.filter((entry) => !entry.item.unknown).slice(-told.history.length);
  return known.map((entry, place) => ({ entry, item: entry.item, parts: model.sequences.map((sequence) => ({
    hue: hueOf(sequence),
    share: Object.entries(told.attention[sequence] ?? {}).reduce((sum, [modality, weights]) =>
      sum + (weights[place] ?? 0) * weight({ sequence, modality }), 0),
  })) }));
}

/** Returns how much a branch's attention counts: by its share of the score, or alone. */
function weight({ sequence, modality }) {
  if (branch) return branch.sequence === sequence && branch.modality === modality ? 1 : 0;
  return told.shares[sequence]?.[modality] ?? 0;
}

function look() {
  const all = looks();
  timeline.look(new Map(all.map(({ entry, parts }) => [entry, parts])));
  if (told) why.look(all);
  drawThreads();
}

function drawThreads() {
  const card = shown && told && !SHEET.matches ? cards.cardOf(shown.item_id) : undefined;
  thread(card, looks().map(({ entry, parts }) => ({
    tile: timeline.tileOf(entry),
    hue: parts.reduce((best, part) => (part.share > best.share ? part : best)).hue,
    share: parts.reduce((sum, part) => sum + part.share, 0),
  })));
}

// ---- the rest of the page

function openFinder(open) {
  document.body.classList.toggle("finding", open);
  byId("find").setAttribute("aria-expanded", open);
  if (open) byId("query").focus({ preventScroll: WIDE.matches });
  drawThreads();
}

function makeTheme() {
  const button = byId("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const show = () => button.setAttribute("aria-pressed", dark());
  button.append(icon("theme"));
  button.addEventListener("click", () => {
    const theme = dark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("theme", theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

async function share() {
  const word = byId("share").querySelector(".word");
  try {
    await navigator.clipboard.writeText(location.href);
    word.textContent = "Copied";
  } catch {
    word.textContent = "Copy the address"; // pages without https may not write to the clipboard
  }
  say(word.textContent);
  setTimeout(() => (word.textContent = "Copy link"), 2000);
}

function makeNumbers() {
  const select = byId("k");
  const numbers = [5, 10, 20, 50];
  if (!numbers.includes(view.k)) numbers.push(view.k);
  select.replaceChildren(...numbers.sort((a, b) => a - b).map((k) => el("option", { value: k }, String(k))));
  select.value = view.k;
}

/** Takes the view from the address. */
function load() {
  const asked = state.read();
  view.k = asked.k;
  view.domain = model.domains.some(({ name }) => name === asked.domain) ? asked.domain : model.domains[0].name;
  wish = asked.why;
  chooseDomain(view.domain);
  makeNumbers();
  return start(asked);
}

async function open() {
  try {
    await meet();
  } catch (problem) {
    if (problem.status === 503) {
      byId("model").textContent = "The model is being loaded.";
      setTimeout(open, 1000);
    } else byId("model").replaceChildren(trouble(problem, open));
    return;
  }
  const total = model.domains.reduce((sum, domain) => sum + domain.num_items, 0);
  const domains = model.domains.map((one) => one.name).join(", ");
  byId("model").textContent = `${count(total, "item")} of ${domains}, ranked by ${model.name}`;
  chooseDomain = domainChoice(byId("domains"), "recommend-in", "", (domain) => {
    view.domain = domain;
    keep();
    recommend();
  });
  byId("k").addEventListener("change", () => {
    view.k = Number(byId("k").value);
    keep();
    recommend();
  });
  finder.start();
  window.addEventListener("hashchange", load);
  await load();
}

byId("find").addEventListener("click", () => openFinder(true));
byId("finder-close").append(icon("close"));
byId("finder-close").addEventListener("click", () => {
  openFinder(false);
  byId("find").focus();
});
byId("clear").addEventListener("click", () => {
  edit([]);
  say("History cleared");
  byId("timeline").querySelector(".add .main").focus();
});
byId("share").prepend(icon("link"));
byId("share").addEventListener("click", share);
byId("skip").addEventListener("click", () => byId("next-title").focus());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && pinned && !byId("key").open) close();
});
byId("timeline").parentElement.addEventListener("scroll", drawThreads, { passive: true });
new ResizeObserver(calm(50, drawThreads)).observe(byId("main"));
makeTheme();
const asked = state.read();
document.body.classList.toggle("finding", WIDE.matches || (asked.person === null && !asked.history.length));
byId("find").setAttribute("aria-expanded", document.body.classList.contains("finding"));
open();
