// Choice of a history: items by search, or a user of the dataset.

import { debounce, latestOnly, request } from "./api.js";
import { byId, element, errorLine, icon, itemName, itemPicture, nameElement, roveFocus } from "./dom.js";
import { colorClass, formatCount, model } from "./model.js";

const ITEMS_PER_PAGE = 24;
const USERS_PER_PAGE = 12;
const PICTURES_PER_USER = 5;
const TYPING_PAUSE_MS = 160; // time without a key until the search starts

/**
 * Makes the choice of a domain among radio buttons.
 * @param {string} allLabel label of a first button for all domains, whose value is ""; "" makes no such button
 * @param {(domain: string) => void} onChange
 * @returns {(domain: string) => void} selects a domain
 */
export function makeDomainChoice(fieldset, name, allLabel, onChange) {
  const option = (value, label, color) => {
    const input = element("input", { type: "radio", name, value, change: () => onChange(value) });
    const text = element("span", { class: color ? `chip ${color}` : "" }, element("bdi", {}, label));
    fieldset.append(element("label", {}, input, text));
    return input;
  };
  fieldset.querySelectorAll("label").forEach((label) => label.remove());
  const inputs = allLabel ? [option("", allLabel, "")] : [];
  for (const domain of model.domains) inputs.push(option(domain.name, domain.name, colorClass(domain.name)));
  return (value) => {
    for (const input of inputs) input.checked = input.value === value;
  };
}

/**
 * Makes the finder.
 * @param {object} handlers `toggle(item)`: an item is pressed; `selectUser(userId)`: a user is chosen
 */
export function makeFinder(handlers) {
  const query = byId("query");
  const userInput = byId("user-id");
  const updateItemTabStop = roveFocus(byId("results"));
  const updateUserTabStop = roveFocus(byId("users"));
  let domain = "";
  let similarTo = null; // the item whose similar items are shown; null for those of the query
  let historyIds = new Set();
  let loadedUserQuery = null; // of the users shown
  let enteredUserId = null; // confirmed by Enter, until the users are loaded

  const markItems = () => {
    for (const button of byId("results").querySelectorAll(".main"))
      button.setAttribute("aria-pressed", historyIds.has(button.dataset.id));
  };

  function itemEntry(item) {
    const color = colorClass(item.domain);
    const button = element("button", { type: "button", class: "main", "aria-pressed": "false",
      click: () => handlers.toggle(item) },
    itemPicture(item, color), element("span", { class: "tick" }, icon("check")),
    element("span", { class: `name chip ${color}`, title: itemName(item) }, nameElement(item)),
    element("span", { class: "hidden" }, `, ${item.domain}`));
    button.dataset.id = item.item_id;
    return element("li", {}, button);
  }

  const loadItems = latestOnly(async (signal, offset = 0) => {
    const parameters = new URLSearchParams(similarTo ? { k: ITEMS_PER_PAGE } : { limit: ITEMS_PER_PAGE, offset });
    const text = similarTo ? "" : query.value.trim();
    if (text) parameters.set("query", text);
    if (domain) parameters.set("domain", domain);
    const list = byId("results");
    const path = similarTo ? `/similar-items/${encodeURIComponent(similarTo.item_id)}?${parameters}` : `/items?${parameters}`;
    try {
      const { items, total = items.length } = await request(path, { signal });
      const entries = items.map(itemEntry);
      if (offset) list.append(...entries);
      else list.replaceChildren(...entries);
      if (similarTo) noteSimilar();
      else
        byId("item-count").textContent = total
          ? `${formatCount(total, "item")}${text ? " found" : ""}`
          : "No item found. Try fewer words.";
      updateMoreButton("more-items", list, total, () => loadItems(list.children.length));
      markItems();
      updateItemTabStop();
      if (offset) entries[0]?.querySelector(".main").focus();
    } catch (error) {
      if (signal.aborted) throw error;
      byId("item-count").replaceChildren(errorLine(error, () => loadItems(0)));
    }
  });

  function noteSimilar() {
    byId("item-count").replaceChildren("Similar to ", element("b", {}, nameElement(similarTo)), " ",
      element("button", { type: "button", class: "link", click: () => {
        query.focus();
        showSimilar(null);
      } }, "Show all items"));
  }

  /** Shows the items most similar to an item, or, for null, all items again. */
  function showSimilar(item) {
    similarTo = item;
    selectTab(tabs[0]);
    query.value = "";
    return loadItems(0);
  }

  function updateMoreButton(id, list, total, loadMore) {
    const button = byId(id);
    button.hidden = list.children.length >= total;
    button.onclick = loadMore;
  }

  function userEntry(user) {
    const pictures = user.history.slice(-PICTURES_PER_USER).map((item) => itemPicture(item, colorClass(item.domain)));
    return element("li", {}, element("button", { type: "button", class: "main user", "data-id": user.user_id,
      click: () => handlers.selectUser(user.user_id) },
    element("span", { class: "user-pictures", "aria-hidden": "true" }, ...pictures),
    element("span", { class: "name" }, element("bdi", {}, user.user_id))));
  }

  const loadUsers = latestOnly(async (signal, offset = 0) => {
    const list = byId("users");
    const text = userInput.value.trim();
    const parameters = new URLSearchParams({ limit: USERS_PER_PAGE, offset });
    if (text) parameters.set("query", text);
    try {
      const { users, total } = await request(`/users?${parameters}`, { signal });
      const entries = users.map(userEntry);
      if (offset) list.append(...entries);
      else list.replaceChildren(...entries);
      loadedUserQuery = text;
      noteUsers(total || !text ? `${formatCount(total, "user")}${text ? " found" : ""}` : `No user id contains “${text}”.`,
        !total);
      updateMoreButton("more-users", list, total, () => loadUsers(list.children.length));
      updateUserTabStop();
      if (offset) entries[0]?.querySelector(".main").focus();
      if (enteredUserId === text) selectEnteredUser();
    } catch (error) {
      if (signal.aborted) throw error;
      byId("user-count").replaceChildren(errorLine(error, () => loadUsers(0)));
    }
  });

  function noteUsers(text, isWrong) {
    byId("user-count").textContent = text;
    userInput.setAttribute("aria-invalid", isWrong);
  }

  const selectRandomUser = latestOnly(async (signal) => {
    try {
      const { total } = await request("/users?limit=1", { signal });
      const { users } = await request(`/users?limit=1&offset=${Math.floor(Math.random() * total)}`, { signal });
      if (users.length) handlers.selectUser(users[0].user_id);
    } catch (error) {
      if (signal.aborted) throw error;
      byId("user-count").replaceChildren(errorLine(error, () => selectRandomUser()));
    }
  });

  /** Selects the user with the entered id, or the only one that is found. */
  function selectEnteredUser() {
    const text = userInput.value.trim();
    if (!text) return;
    enteredUserId = loadedUserQuery === text ? null : text;
    if (enteredUserId) return void loadUsers(0);
    const entries = [...byId("users").querySelectorAll(".main")];
    const entry = entries.find((button) => button.dataset.id === text) ?? (entries.length === 1 ? entries[0] : null);
    if (entry) handlers.selectUser(entry.dataset.id);
    else if (entries.length) noteUsers(`No user has the id “${text}”. Choose one of those below.`, true);
  }

  const tabs = [byId("tab-items"), byId("tab-users")];

  function selectTab(selected) {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === selected);
      tab.tabIndex = tab === selected ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== selected;
    }
    if (selected === tabs[1] && loadedUserQuery === null) loadUsers(0);
  }

  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => selectTab(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      tabs[1 - index].focus();
      selectTab(tabs[1 - index]);
    });
  }
  query.addEventListener("input", () => (similarTo = null));
  query.addEventListener("input", debounce(TYPING_PAUSE_MS, () => loadItems(0)));
  query.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    byId("results").querySelector(".main[tabindex='0']")?.focus();
  });
  userInput.addEventListener("input", () => (enteredUserId = null));
  userInput.addEventListener("input", debounce(TYPING_PAUSE_MS, () => loadUsers(0)));
  userInput.addEventListener("keydown", (event) => {
    if (event.key === "Enter") selectEnteredUser();
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    byId("users").querySelector(".main[tabindex='0']")?.focus();
  });
  byId("random-user").addEventListener("click", () => selectRandomUser());

  /** Fills the finder; `model` must be loaded. */
  function start() {
    makeDomainChoice(byId("finder-domains"), "search-in", "All", (value) => {
      domain = value;
      loadItems(0);
    })("");
    if (!model.has_users) byId("tab-users").parentElement.hidden = true;
    loadItems(0);
  }

  /** Marks the items of the history. */
  function setHistory(itemIds) {
    historyIds = new Set(itemIds);
    markItems();
  }

  return { start, setHistory, showSimilar };
}
