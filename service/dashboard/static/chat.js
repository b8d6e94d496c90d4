// Shows the playground's answer word by word. Without this file it comes as a page.
"use strict";

async function ask(form, shown) {
  const button = form.querySelector("button");
  button.disabled = true;
  shown.hidden = false;
  shown.textContent = "The model is being asked; the first time takes a while.";
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
      headers: { Accept: "text/plain" },
      credentials: "same-origin",
      redirect: "error",
    });
    if (!answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const problem = page.querySelector(".problem")?.textContent;
      shown.textContent = problem || "It gave no answer. Try again in a minute.";
      return;
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let said = ""; ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      said += value;
      shown.textContent = said;
    }
  } catch {
    shown.textContent = "The connection broke. Try again in a minute.";
  } finally {
    button.disabled = false;
  }
}

document.querySelectorAll("form[data-chat]").forEach((form) => {
  const shown = form.parentElement.querySelector("[data-chat-answer]");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask(form, shown);
  });
});
