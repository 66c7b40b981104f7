// The page. All that it shows follows from a history, a domain and a number k, which the address keeps.

import { debounce, latestOnly, request } from "./api.js";
import { makeCards } from "./cards.js";
import { announce, byId, element, errorLine, icon, itemName } from "./dom.js";
import { makeExplanation } from "./explanation.js";
import { makeDomainChoice, makeFinder } from "./finder.js";
import { colorClass, formatCount, loadModel, model, sumOfShares } from "./model.js";
import { readState, writeState } from "./state.js";
import { drawThreads } from "./threads.js";
import { makeTimeline } from "./timeline.js";

const WIDE = matchMedia("(min-width: 1280px)"); // the finder has a column of its own
const NARROW = matchMedia("(max-width: 999px)"); // the explanation covers the lower half of the page
const NO_RECOMMENDATIONS = { items: [], ranked_by: "model", unknown_ids: [] };

const view = { userId: null, history: [], domain: "", k: 10 }; // history: entries {item}
let recommendations = NO_RECOMMENDATIONS;
let explainedItem = null; // the recommendation whose explanation is shown
let isPinned = false; // whether the explanation stays when the pointer moves to another card
let explanation = null; // the server's answer about explainedItem, null until it arrives
let selectedBranch = null; // the branch whose attention is shown, null for all of them
let addressedId = null; // the id of the item that the address wants explained
let selectDomain;

const timeline = makeTimeline((history) => setHistory(history), () => openFinder(true));
const finder = makeFinder({ toggle, selectUser: (userId) => start({ userId, itemIds: [] }) });
const cards = makeCards({ preview, choose, add });
const panel = makeExplanation({
  close,
  add,
  selectBranch: (branch) => {
    selectedBranch = branch;
    showAttention();
  },
});

const historyIds = () => view.history.map((entry) => entry.item.item_id);
const possessive = () => (view.userId === null ? "your" : "their");
const saveState = () =>
  writeState({ ...view, itemIds: historyIds(), explainedId: isPinned && explainedItem ? explainedItem.item_id : null });

// ---- the history

/** Shows a history that the visitor changed, which is thus no longer that of a user of the dataset. */
function setHistory(history) {
  view.history = history;
  view.userId = null;
  render();
}

function add(item) {
  setHistory([...view.history, { item }]);
  announce(`${itemName(item)} added, ${formatCount(view.history.length, "item")}`);
}

function toggle(item) {
  const remaining = view.history.filter((entry) => entry.item.item_id !== item.item_id);
  if (remaining.length === view.history.length) return add(item);
  setHistory(remaining);
  announce(`${itemName(item)} removed, ${formatCount(remaining.length, "item")} left`);
}

function render() {
  timeline.show(view.history, view.userId);
  finder.setHistory(historyIds());
  saveState();
  recommend();
}

/** Starts from a user of the dataset, or from items by their ids. */
const start = latestOnly(async (signal, { userId, itemIds }) => {
  try {
    if (userId !== null) {
      const user = await request(`/users/${encodeURIComponent(userId)}`, { signal });
      Object.assign(view, { userId: user.user_id, history: user.history.map((item) => ({ item })) });
    } else {
      const items = await Promise.all(itemIds.map((id) => fetchItem(id, signal)));
      Object.assign(view, { userId: null, history: items.map((item) => ({ item })) });
    }
  } catch (error) {
    if (signal.aborted) throw error;
    byId("history-note").replaceChildren(errorLine(error, () => start({ userId, itemIds })));
    if (!recommendations.items.length) recommend();
    return;
  }
  render();
});

async function fetchItem(id, signal) {
  try {
    const item = await request(`/items/${encodeURIComponent(id)}`, { signal });
    if (item.item_id === id) return item;
  } catch (error) {
    if (!(error.status < 500) || error.status === 429) throw error; // else there is no such item
  }
  return { item_id: id, title: null, domain: "", picture: null, train_count: 0, is_unknown: true };
}

// ---- the recommendations

const recommend = latestOnly(async (signal) => {
  const body = { history: historyIds(), domain: view.domain, k: view.k, include_shares: model.can_explain };
  cards.showBusy(view.k);
  try {
    recommendations = await request("/recommend", { body, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    recommendations = NO_RECOMMENDATIONS;
    clearExplanation();
    byId("recommendations-note").textContent = "";
    cards.showError(errorLine(error, recommend));
    return;
  }
  const { items } = recommendations;
  cards.show(items, possessive());
  byId("recommendations-note").textContent = describeRecommendations();
  const selected = items.find((item) => item.item_id === (addressedId ?? explainedItem?.item_id));
  isPinned = Boolean(selected) && (isPinned || addressedId !== null);
  addressedId = null;
  if (items.length) explain(selected ?? items[0]);
  else clearExplanation();
});

function describeRecommendations() {
  const { items, ranked_by, unknown_ids } = recommendations;
  if (!items.length) return `There are no more items to recommend in ${view.domain}.`;
  const numRead = Math.min(view.history.length - unknown_ids.length, model.max_length);
  const skipped = unknown_ids.length ? ` ${formatCount(unknown_ids.length, "id")} not in the catalog, skipped.` : "";
  if (ranked_by === "model")
    return `The ${items.length} best of ${view.domain} after ${formatCount(numRead, "item")}.${skipped}`;
  const reason = view.history.length ? "The catalog has no item of the history" : "No history yet";
  return `${reason}: the most popular items of ${view.domain}.${skipped}`;
}

// ---- the explanation

function clearExplanation() {
  explainedItem = null;
  isPinned = false;
  explanation = null;
  panel.hide();
  showAttention();
}

/** Explains an item: at once by its shares, and by attention when the server has answered. */
const explain = latestOnly(async (signal, item) => {
  if (explainedItem?.item_id !== item.item_id) explanation = null;
  explainedItem = item;
  selectedBranch = null;
  cards.select(item.item_id, isPinned);
  const rank = 1 + recommendations.items.indexOf(item);
  panel.show(item, { rank, rankedBy: recommendations.ranked_by, possessive: possessive(), isPinned });
  saveState();
  if (!item.shares) {
    explanation = null;
    return showAttention();
  }
  try {
    explanation = await request("/explain", { body: { history: historyIds(), item: item.item_id }, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    explanation = null;
    showAttention();
    return panel.showError(errorLine(error, () => explain(item)));
  }
  showAttention();
});

function preview(item) {
  if (isPinned || NARROW.matches || explainedItem?.item_id === item.item_id) return updateThreads();
  explain(item);
}

function choose(item) {
  isPinned = !(isPinned && explainedItem?.item_id === item.item_id);
  explain(item);
  if (isPinned && NARROW.matches) byId("explanation-title").focus({ preventScroll: true });
  if (isPinned) announce(`Explanation of ${itemName(item)} opened`);
}

function close() {
  const hasFocus = byId("explanation").contains(document.activeElement);
  isPinned = false;
  panel.pin(false);
  if (explainedItem) cards.select(explainedItem.item_id, false);
  if (hasFocus && explainedItem) cards.cardOf(explainedItem.item_id)?.querySelector(".main").focus();
  saveState();
}

/** Returns the entries that the model read, each with its part of the score for each sequence. */
function attendedEntries() {
  if (!explanation) return [];
  const entries = view.history.filter((entry) => !entry.item.is_unknown).slice(-explanation.history.length);
  return entries.map((entry, index) => ({ entry, item: entry.item, parts: model.sequences.map((sequence) => ({
    color: colorClass(sequence),
    share: model.modalities.reduce((sum, modality) => sum
      + (explanation.attention[sequence]?.[modality]?.[index] ?? 0) * branchWeight(sequence, modality), 0),
  })) }));
}

/** Returns the weight of a branch's attention: its share of the score; 1 or 0 if a branch is selected. */
function branchWeight(sequence, modality) {
  if (selectedBranch) return Number(selectedBranch.sequence === sequence && selectedBranch.modality === modality);
  return explanation.shares[sequence]?.[modality] ?? 0;
}

function showAttention() {
  const attended = attendedEntries();
  timeline.showAttention(new Map(attended.map(({ entry, parts }) => [entry, parts])));
  if (explanation) panel.showAttention(attended);
  updateThreads();
}

function updateThreads() {
  const card = explainedItem && explanation && !NARROW.matches ? cards.cardOf(explainedItem.item_id) : undefined;
  drawThreads(card, attendedEntries().map(({ entry, parts }) => ({
    tile: timeline.tileOf(entry),
    color: parts.reduce((best, part) => (part.share > best.share ? part : best)).color,
    share: sumOfShares(parts),
  })));
}

// ---- the rest of the page

function openFinder(isOpen) {
  document.body.classList.toggle("finder-open", isOpen);
  byId("open-finder").setAttribute("aria-expanded", isOpen);
  if (isOpen) byId("query").focus({ preventScroll: WIDE.matches });
  updateThreads();
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

function fillNumberChoice() {
  const select = byId("k");
  const numbers = [...new Set([5, 10, 20, 50, view.k])].sort((a, b) => a - b);
  select.replaceChildren(...numbers.map((k) => element("option", { value: k }, String(k))));
  select.value = view.k;
}

/** Shows the state that the address holds. */
function showAddress() {
  const state = readState();
  view.k = state.k;
  view.domain = model.domains.some(({ name }) => name === state.domain) ? state.domain : model.domains[0].name;
  addressedId = state.explainedId;
  selectDomain(view.domain);
  fillNumberChoice();
  return start(state);
}

async function openPage() {
  try {
    await loadModel();
  } catch (error) {
    if (error.status === 503) {
      byId("model").textContent = "The model is being loaded.";
      setTimeout(openPage, 1000);
    } else byId("model").replaceChildren(errorLine(error, openPage));
    return;
  }
  const numItems = model.domains.reduce((sum, domain) => sum + domain.num_items, 0);
  const names = model.domains.map((domain) => domain.name).join(", ");
  byId("model").textContent = `${formatCount(numItems, "item")} of ${names}, ranked by ${model.name}`;
  selectDomain = makeDomainChoice(byId("domains"), "recommend-in", "", (domain) => {
    view.domain = domain;
    saveState();
    recommend();
  });
  byId("k").addEventListener("change", () => {
    view.k = Number(byId("k").value);
    saveState();
    recommend();
  });
  finder.start();
  window.addEventListener("hashchange", showAddress);
  await showAddress();
}

byId("open-finder").addEventListener("click", () => openFinder(true));
byId("finder-close").append(icon("close"));
byId("finder-close").addEventListener("click", () => {
  openFinder(false);
  byId("open-finder").focus();
});
byId("clear").addEventListener("click", () => {
  setHistory([]);
  announce("History cleared");
  byId("timeline").querySelector(".add .main").focus();
});
byId("copy-link").prepend(icon("link"));
byId("copy-link").addEventListener("click", copyLink);
byId("skip").addEventListener("click", () => byId("recommendations-title").focus());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isPinned && !byId("key").open) close();
});
byId("timeline").parentElement.addEventListener("scroll", updateThreads, { passive: true });
new ResizeObserver(debounce(50, updateThreads)).observe(byId("main"));
makeThemeButton();
const { userId, itemIds } = readState();
document.body.classList.toggle("finder-open", WIDE.matches || (userId === null && !itemIds.length));
byId("open-finder").setAttribute("aria-expanded", document.body.classList.contains("finder-open"));
openPage();
