// The page. All that it shows follows from a history, a domain and a number k, which the address keeps.

import { debounce, latestOnly, request } from "./api.js";
import { announce, byId, element, errorLine, icon, itemName } from "./dom.js";
import { makeExplainer } from "./explainer.js";
import { makeDomainChoice, makeFinder } from "./finder.js";
import { startHeader } from "./header.js";
import { startMenu } from "./menu.js";
import { formatCount, isLink, loadModels, model } from "./model.js";
import { makeOptions } from "./options.js";
import { makeRecommendations } from "./recommendations.js";
import { closeSheet, opensAsSheet, openSheet, startSheet } from "./sheet.js";
import { readState, undo, writeState } from "./state.js";
import { hideToast, showToast } from "./toast.js";
import { makeTimeline } from "./timeline.js";

/**
 * All that the address holds: the history as entries {item}; the domain, "" for all; the models, none for the first;
 * `excluded` ids; `columns` of the items table on cards; `targetIndex` among `targets`, the test targets of the user.
 */
const view = { userId: null, history: [], domain: "", k: 10, models: [], excluded: [], includeSeen: false, where: "",
  diversity: 0, columns: [], targets: [], targetIndex: null, target: null };
let selectDomain; // shows a domain as the chosen one

const timeline = makeTimeline({ change: (history, message) => {
  setHistory(history);
  if (message) showToast(message, undo);
}, add: () => openFinder(true), actionsFor: (item) => similarAction(item) });
const finder = makeFinder({ toggle, selectUser });
const explainer = makeExplainer(view, { add, hide, timeline, saveState: () => saveState(),
  select: (...selection) => recommendations.select(...selection) });
const recommendations = makeRecommendations({ ...explainer, add, actionsFor, modelReplaced,
  showExcluded: () => {
    byId("recommendations-title").focus();
    change({ excluded: [] });
  } });
makeOptions(view, { change, lists: recommendations.lists, bodyOf: (list) => recommendations.bodyOf(list, view) });
const historyIds = () => view.history.map((entry) => entry.item.item_id);
const saveState = (isChange = false) =>
  writeState({ ...view, itemIds: historyIds(), explainedId: explainer.pinnedId() }, isChange);

/** Returns the actions for an item that is recommended. */
function actionsFor(item) {
  return [{ label: "Add to the history", icon: "add", run: () => add(item) }, ...similarAction(item),
    { label: "Not this one", icon: "hide", run: () => hide(item) },
    ...Object.entries(item.attributes).filter(([, value]) => isLink(value))
      .map(([name, value]) => ({ label: `Open ${name}`, icon: "open", href: value }))];
}

/** Keeps an item out of all lists. */
function hide(item) {
  change({ excluded: [...view.excluded, item.item_id] });
  showToast(`${itemName(item)} is no longer recommended`, undo);
}

/** Changes parts of the view that are not the history. */
function change(parts) {
  Object.assign(view, parts);
  hideToast();
  saveState(true);
  recommend();
}

const recommend = () => recommendations.show(view);

function similarAction(item) {
  if (!model.has_vectors) return [];
  return [{ label: "Similar items", icon: "similar", run: () => {
    openFinder(true);
    finder.showSimilar(item);
    byId("finder-title").focus();
  } }];
}

// ---- the history

/** Shows a history that the visitor changed, which is thus no longer that of a user of the dataset. */
function setHistory(history) {
  Object.assign(view, { history, userId: null, targets: [], targetIndex: null, target: null });
  hideToast();
  render(true);
}

function add(item) {
  knownItems.set(item.item_id, item);
  setHistory([...view.history, { item }]);
  announce(`${itemName(item)} added, ${formatCount(view.history.length, "item")}`);
}

function toggle(item) {
  const remaining = view.history.filter((entry) => entry.item.item_id !== item.item_id);
  if (remaining.length === view.history.length) return add(item);
  setHistory(remaining);
  announce(`${itemName(item)} removed, ${formatCount(remaining.length, "item")} left`);
}

function selectUser(userId) {
  closeSheet();
  return start({ userId, itemIds: [] }, true);
}

function render(isChange) {
  timeline.show(view.history, view.userId);
  showTargets();
  finder.setHistory(historyIds());
  saveState(isChange);
  recommend();
}

const knownItems = new Map(); // item id -> item, of the histories of this visit

/** Starts from a user of the dataset, at one of the targets or with the whole history, or from items by their ids. */
const start = latestOnly(async (signal, { userId, itemIds, targetIndex = null }, isChange = false) => {
  try {
    if (userId !== null) {
      const user = await request(`/users/${encodeURIComponent(userId)}`, { signal });
      for (const item of user.history) knownItems.set(item.item_id, item);
      const target = user.targets[targetIndex] ?? null;
      const ids = user.history.slice(0, target?.num_before).map((item) => item.item_id);
      Object.assign(view, { userId: user.user_id, history: entriesOf(ids), targets: user.targets, target,
        targetIndex: target && targetIndex });
      if (target && view.domain && view.domain !== target.item.domain) view.domain = target.item.domain;
      selectDomain(view.domain);
    } else {
      await fetchItems(itemIds.filter((id) => !knownItems.has(id)), signal);
      Object.assign(view, { userId: null, history: entriesOf(itemIds), targets: [], target: null, targetIndex: null });
    }
  } catch (error) {
    if (signal.aborted) throw error;
    timeline.show(view.history, view.userId);
    byId("history-note").replaceChildren(errorLine(error, () => start({ userId, itemIds, targetIndex }, isChange)));
    if (!recommendations.lists().length) recommend();
    return;
  }
  render(isChange);
});

/** Fetches items into `knownItems`; an id that the catalog does not have becomes an item that `is_unknown`. */
async function fetchItems(ids, signal) {
  if (!ids.length) return;
  const { items, unknown_ids } = await request("/items", { body: { ids }, signal });
  for (const item of items) knownItems.set(item.item_id, item);
  for (const item_id of unknown_ids)
    knownItems.set(item_id, { item_id, title: null, domain: "", picture: null, train_count: 0, attributes: {},
      is_unknown: true });
}

/** Returns entries for item ids, those of the present history where they are the same. */
function entriesOf(ids) {
  const present = Map.groupBy(view.history, (entry) => entry.item.item_id);
  return ids.map((id) => {
    const entry = present.get(id)?.shift();
    return entry?.item === knownItems.get(id) ? entry : { item: knownItems.get(id) };
  });
}

/** Offers to go back to before each choice that the model did not see, where the next choice is known. */
function showTargets() {
  const select = byId("target");
  byId("look-back").hidden = !view.targets.length;
  const options = view.targets.map(({ item }, index) => element("option", { value: index }, `${item.domain}: ${itemName(item)}`));
  select.replaceChildren(element("option", { value: "" }, "none: the whole history"), ...options);
  select.value = view.targetIndex ?? "";
}

// ---- the recommendations

/** Shows the model that has replaced one of this page. */
async function modelReplaced() {
  try {
    await loadModels();
  } catch {
    return setTimeout(recommend, 2000);
  }
  knownItems.clear();
  showModel();
  showToast("A newer model answers now.");
  return start({ userId: view.userId, itemIds: historyIds(), targetIndex: view.targetIndex });
}

// ---- the rest of the page

function openFinder(isOpen) {
  if (opensAsSheet("finder")) {
    if (!isOpen) return closeSheet();
    openSheet(byId("finder"), () => byId("open-finder").setAttribute("aria-expanded", "false"));
  } else document.body.classList.toggle("finder-open", isOpen);
  byId("open-finder").setAttribute("aria-expanded", isOpen);
  if (isOpen) byId("query").focus({ preventScroll: true });
  explainer.updateThreads();
}

function fillNumberChoice() {
  const select = byId("k");
  const numbers = [...new Set([5, 10, 20, 50, view.k])].sort((a, b) => a - b);
  select.replaceChildren(...numbers.map((k) => element("option", { value: k }, String(k))));
  select.value = view.k;
  byId("finder-done").textContent = `See ${formatCount(view.k, "recommendation")}`;
}

/** Shows the state that the address holds. */
function showAddress() {
  const { userId, itemIds, targetIndex, explainedId, ...parts } = readState();
  Object.assign(view, parts, {
    domain: parts.domain === "" || isDomainName(parts.domain) ? parts.domain : model.domains[0].name,
    models: parts.models.filter((name) => model.models.includes(name)),
    columns: parts.columns.filter((name) => model.attributes.includes(name)),
  });
  explainer.setAddressed(explainedId);
  selectDomain(view.domain);
  showModels();
  fillNumberChoice();
  if (!view.history.length && (userId !== null || itemIds.length)) timeline.showBusy();
  return start({ userId, itemIds, targetIndex });
}

const isDomainName = (domain) => model.domains.some(({ name }) => name === domain);

async function openPage() {
  try {
    await loadModels();
  } catch (error) {
    if (error.status === 503) {
      byId("model").textContent = "The model is being loaded.";
      setTimeout(openPage, 1000);
    } else byId("model").replaceChildren(errorLine(error, openPage));
    return;
  }
  showModel();
  byId("k").addEventListener("change", () => {
    view.k = Number(byId("k").value);
    fillNumberChoice();
    change({});
  });
  byId("target").addEventListener("change", () => {
    const value = byId("target").value;
    start({ userId: view.userId, itemIds: [], targetIndex: value === "" ? null : Number(value) }, true);
  });
  window.addEventListener("popstate", showAddress);
  document.body.classList.remove("loading");
  await showAddress();
}

/** Shows what the page says of the models: names, domains, and items to start from. */
function showModel() {
  const numItems = model.domains.reduce((sum, domain) => sum + domain.num_items, 0);
  const names = model.domains.map((domain) => domain.name).join(", ");
  byId("model").textContent = `${formatCount(numItems, "item")} of ${names}, ranked by ${model.models.join(", ")}`;
  const allLabel = model.domains.length > 1 ? "All" : "";
  selectDomain = makeDomainChoice(byId("domains"), "recommend-in", allLabel, (domain) => change({ domain }));
  if (view.domain && !isDomainName(view.domain)) view.domain = model.domains[0].name;
  selectDomain(view.domain);
  showModels();
  finder.start();
}

/** Shows the choice of models, one or several side by side. */
function showModels() {
  const fieldset = byId("models");
  fieldset.hidden = model.models.length < 2;
  const chosen = () => model.models.filter((name) => fieldset.querySelector(`[value="${CSS.escape(name)}"]`).checked);
  fieldset.querySelectorAll("label").forEach((label) => label.remove());
  for (const name of model.models) {
    const isChecked = view.models.length ? view.models.includes(name) : name === model.models[0];
    fieldset.append(element("label", {}, element("input", { type: "checkbox", value: name, checked: isChecked,
      change: (event) => (chosen().length ? change({ models: chosen() }) : (event.target.checked = true)) }),
    element("span", {}, element("bdi", {}, name))));
  }
}

byId("open-finder").addEventListener("click", () => openFinder(true));
byId("finder-close").append(icon("close"));
byId("finder-close").addEventListener("click", () => {
  openFinder(false);
  byId("open-finder").focus();
});
byId("finder-done").addEventListener("click", () => {
  closeSheet();
  byId("recommendations-title").focus();
  byId("recommendations").scrollIntoView();
});
byId("clear").addEventListener("click", () => {
  setHistory([]);
  announce("History cleared");
  showToast("History cleared", undo);
  byId("timeline").querySelector(".add .main").focus();
});
byId("skip").addEventListener("click", () => byId("recommendations-title").focus());
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open], :popover-open")) return; // has its own keys
  if (event.key === "Escape" && explainer.pinnedId() !== null) explainer.close();
  if (event.key === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.target.matches("[type=search], [type=text], [type=password]")) {
    event.preventDefault();
    undo();
  }
});
byId("timeline").parentElement.addEventListener("scroll", explainer.updateThreads, { passive: true });
new ResizeObserver(debounce(50, explainer.updateThreads)).observe(byId("main"));
startHeader();
startMenu();
startSheet();
const { userId, itemIds } = readState();
document.body.classList.toggle("finder-open", matchMedia("(min-width: 80em)").matches || (userId === null && !itemIds.length));
byId("open-finder").setAttribute("aria-expanded", document.body.classList.contains("finder-open"));
openPage();
