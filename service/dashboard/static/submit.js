// Redraws the price of a new job while its settings change, and couples sliders with numbers.
// Without this file the Estimate button does the same.
"use strict";
const PAUSE_MS = 250;
const ask = document.getElementById("ask");
const part = document.getElementById("estimate");

function couple(slider) {
  const number = document.getElementById(slider.dataset.slides);
  slider.hidden = false;
  slider.addEventListener("input", () => {
    number.value = slider.value;
    changed();
  });
  number.addEventListener("input", () => place(slider, number.value));
  place(slider, number.value);
}

function place(slider, value) {
  if (value !== "") slider.value = value;
}

let timer = 0;
let open = null;

function changed() {
  clearTimeout(timer);
  part.setAttribute("aria-busy", "true");
  // What is on screen no longer fits the settings: it must not be submitted.
  for (const button of part.querySelectorAll("button")) button.disabled = true;
  timer = setTimeout(redraw, PAUSE_MS);
}

async function redraw() {
  open?.abort();
  const mine = (open = new AbortController());
  try {
    const query = new URLSearchParams(new FormData(ask));
    const answer = await fetch(`/submit/estimate?${query}`, {
      signal: mine.signal,
      credentials: "same-origin",
      cache: "no-store",
      redirect: "error",
    });
    if (answer.status === 401) return location.reload();
    if (!answer.ok) throw new Error();
    show(await answer.text());
  } catch {
    if (!mine.signal.aborted) part.textContent = "The service did not answer. Press Estimate to try again.";
  }
  if (mine === open) part.removeAttribute("aria-busy");
}

function show(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  part.replaceChildren(...fresh.body.childNodes);
  const chosen = part.querySelector("[data-steps]");
  for (const slider of ask.querySelectorAll("[data-slides]")) {
    const number = document.getElementById(slider.dataset.slides);
    const auto = chosen?.dataset[slider.dataset.slides];
    if (number.value === "" && auto) slider.value = auto;
  }
}

if (ask && part) {
  ask.querySelectorAll("[data-slides]").forEach(couple);
  ask.addEventListener("input", (event) => event.target.type === "range" || changed());
  ask.addEventListener("submit", (event) => {
    event.preventDefault();
    changed();
  });
  if (!part.querySelector("[data-steps], [role=alert]")) changed();
}
