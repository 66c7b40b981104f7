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
  let historyIds = new Set();
  let hasLoadedUsers = false;

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
    const parameters = new URLSearchParams({ limit: ITEMS_PER_PAGE, offset });
    const text = query.value.trim();
    if (text) parameters.set("query", text);
    if (domain) parameters.set("domain", domain);
    const list = byId("results");
    try {
      const { items, total } = await request(`/items?${parameters}`, { signal });
      const entries = items.map(itemEntry);
      if (offset) list.append(...entries);
      else list.replaceChildren(...entries);
      byId("item-count").textContent = total
        ? `${formatCount(total, "item")}${text ? " found" : ""}`
        : "No item found. Try fewer words.";
      updateMoreButton("more-items", list, total, () => loadItems(list.children.length));
      markItems();
      updateItemTabStop();
      if (offset) entries[0]?.querySelector(".main").focus();
    } catch (error) {
      if (signal.aborted) throw error;
      byId("item-count").textContent = "";
      byId("more-items").hidden = true;
      list.replaceChildren(element("li", { class: "wide" }, errorLine(error, () => loadItems(0))));
    }
  });

  function updateMoreButton(id, list, total, loadMore) {
    const button = byId(id);
    button.hidden = list.children.length >= total;
    button.onclick = loadMore;
  }

  function userEntry(user) {
    const pictures = user.history.slice(-PICTURES_PER_USER).map((item) => itemPicture(item, colorClass(item.domain)));
    return element("li", {}, element("button", { type: "button", class: "main user",
      click: () => handlers.selectUser(user.user_id) },
    element("span", { class: "user-pictures", "aria-hidden": "true" }, ...pictures),
    element("span", { class: "name" }, element("bdi", {}, user.user_id))));
  }

  const loadUsers = latestOnly(async (signal, offset = 0) => {
    const list = byId("users");
    try {
      const { users, total } = await request(`/users?limit=${USERS_PER_PAGE}&offset=${offset}`, { signal });
      const entries = users.map(userEntry);
      if (offset) list.append(...entries);
      else list.replaceChildren(...entries);
      hasLoadedUsers = true;
      byId("user-count").textContent = formatCount(total, "user");
      byId("random-user").onclick = () => selectRandomUser(total);
      updateMoreButton("more-users", list, total, () => loadUsers(list.children.length));
      updateUserTabStop();
      if (offset) entries[0]?.querySelector(".main").focus();
    } catch (error) {
      if (signal.aborted) throw error;
      list.replaceChildren(element("li", {}, errorLine(error, () => loadUsers(0))));
    }
  });

  const selectRandomUser = latestOnly(async (signal, total) => {
    const { users } = await request(`/users?limit=1&offset=${Math.floor(Math.random() * total)}`, { signal });
    if (users.length) handlers.selectUser(users[0].user_id);
  });

  const tabs = [byId("tab-items"), byId("tab-users")];

  function selectTab(selected) {
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === selected);
      tab.tabIndex = tab === selected ? 0 : -1;
      byId(tab.getAttribute("aria-controls")).hidden = tab !== selected;
    }
    if (selected === tabs[1] && !hasLoadedUsers) loadUsers(0);
  }

  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => selectTab(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      tabs[1 - index].focus();
      selectTab(tabs[1 - index]);
    });
  }
  query.addEventListener("input", debounce(TYPING_PAUSE_MS, () => loadItems(0)));
  query.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown") return;
    event.preventDefault();
    byId("results").querySelector(".main[tabindex='0']")?.focus();
  });
  userInput.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && userInput.value.trim()) handlers.selectUser(userInput.value.trim());
  });

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

  return { start, setHistory };
}
