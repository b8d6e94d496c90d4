// Keeps the live part of a page fresh, only while it is looked at: one stream tells that
// something changed, then the part is asked for anew, at most every two seconds.
// Where no stream can be had, it asks every two seconds. Without this file the pages work
// the same; they then change when they are reloaded.
"use strict";
const PERIOD_MS = 2000;
const SPREAD_MS = 400;

function keepOpen(part, fresh) {
  for (const opened of part.querySelectorAll("details[open][id]")) {
    const same = fresh.getElementById(opened.id);
    if (same) same.open = true;
  }
}

function refresh(part) {
  let etag = "";
  let timer = 0;
  let asked = 0;
  let stream = null;
  let isStreamless = !window.EventSource;

  async function ask() {
    timer = 0;
    if (document.hidden) return;
    asked = Date.now();
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
      if (!isStreamless) plan();
    }
    if (isEnded()) close();
    else if (isStreamless) plan();
  }

  function show(html, tag) {
    etag = tag;
    const fresh = new DOMParser().parseFromString(html, "text/html");
    keepOpen(part, fresh);
    const focused = document.activeElement;
    const name = focused?.hasAttribute("formaction") ? "formaction" : "href";
    const value = part.contains(focused) ? focused.getAttribute(name) : null;
    part.replaceChildren(...fresh.body.childNodes);
    if (value) part.querySelector(`[${name}="${CSS.escape(value)}"]`)?.focus();
  }

  const isEnded = () => part.querySelector("[data-live-end]") !== null;

  function plan() {
    // Not all tabs at the same moment.
    timer ||= setTimeout(ask, Math.max(0, asked + PERIOD_MS - Date.now()) + Math.random() * SPREAD_MS);
  }

  function open() {
    if (document.hidden || isEnded()) return;
    if (isStreamless) return plan();
    stream ??= new EventSource(part.dataset.stream);
    stream.addEventListener("changed", plan);
    stream.onerror = () => {
      if (stream?.readyState !== EventSource.CLOSED) return; // it comes back by itself
      close();
      isStreamless = true; // refused: too many tabs, or nobody signed in
      plan();
    };
  }

  function close() {
    stream?.close();
    stream = null;
  }

  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  open();
}

document.querySelectorAll("[data-live]").forEach(refresh);
