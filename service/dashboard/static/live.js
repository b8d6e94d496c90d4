// Refreshes the live part of a page every two seconds, only while it is looked at.
// Without this file the pages work the same; they then change when they are reloaded.
"use strict";
const PERIOD_MS = 2000;

function keepOpen(part, fresh) {
  for (const opened of part.querySelectorAll("details[open][id]")) {
    const same = fresh.getElementById(opened.id);
    if (same) same.open = true;
  }
}

function refresh(part) {
  let etag = "";
  let timer = 0;

  async function ask() {
    timer = 0;
    if (document.hidden) return;
    try {
      const answer = await fetch(part.dataset.live, {
        headers: etag ? { "If-None-Match": etag } : {},
        credentials: "same-origin",
        cache: "no-store",
        redirect: "error",
      });
      if (answer.status === 401) return location.reload();
      if (answer.status === 200) show(await answer.text(), answer.headers.get("ETag") || "");
    } catch {
      // The server is away for a moment; the next round asks again.
    }
    plan();
  }

  function show(html, tag) {
    etag = tag;
    const fresh = new DOMParser().parseFromString(html, "text/html");
    keepOpen(part, fresh);
    const focused = document.activeElement;
    const href = part.contains(focused) ? focused.getAttribute("href") : null;
    part.replaceChildren(...fresh.body.childNodes);
    if (href) part.querySelector(`a[href="${CSS.escape(href)}"]`)?.focus();
  }

  function plan() {
    if (!timer && !part.querySelector("[data-live-end]")) timer = setTimeout(ask, PERIOD_MS);
  }

  document.addEventListener("visibilitychange", () => document.hidden || timer || ask());
  plan();
}

document.querySelectorAll("[data-live]").forEach(refresh);
