// The list of conversations, and the menu of each.

import { $, el, icon } from "./dom.js";
import { t } from "./strings.js";

export function showList(conversations, current, busy, actions) {
  const items = conversations.map((conversation) => {
    const title = conversation.title || t("untitled");
    const more = el("button", { type: "button", class: "icon-button", "aria-haspopup": "menu",
      "aria-label": t("moreOf", { title }), onclick: (event) => actions.menu(conversation, event.currentTarget) },
      icon("more"));
    return el("li", { class: busy(conversation) ? "busy" : undefined },
      el("button", { type: "button", class: "row-button", onclick: () => actions.open(conversation),
        "aria-current": conversation === current ? "true" : undefined }, el("span", {}, title)), more);
  });
  $("list").replaceChildren(...items);
  if (!items.length) $("list").append(el("li", { class: "hint" }, t("noConversations")));
}

// Below the button that opens it, and inside of the window.
export function openMenu(anchor, act) {
  const menu = $("menu");
  const box = anchor.getBoundingClientRect();
  menu.onclick = (event) => {
    const name = event.target.closest("[data-do]")?.dataset.do;
    if (!name) return;
    menu.hidePopover();
    act(name);
  };
  menu.onkeydown = (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const all = [...menu.children];
    all.at((all.indexOf(document.activeElement) + step) % all.length).focus();
  };
  menu.showPopover();
  menu.style.left = `${Math.max(8, Math.min(box.left, innerWidth - menu.offsetWidth - 8))}px`;
  menu.style.top = `${Math.max(8, Math.min(box.bottom + 4, innerHeight - menu.offsetHeight - 8))}px`;
  menu.firstElementChild.focus();
}
