/* Refreshes a part of the page: <div class="refresh" data-refresh="<address>" data-target="<id>">.

   The new content is merged into the old, node by node: what did not change stays, and with it the focus, the selection
   and the scrolling. Nothing is fetched while the tab is hidden or the reader has paused. */
(() => {
  "use strict";

  const EVERY_MS = 2000;
  // A server that answers later than this counts as not answering.
  const PATIENCE_MS = 10000;

  const bar = document.querySelector(".refresh[data-refresh]");
  if (!bar) return;
  const target = document.getElementById(bar.dataset.target);
  const note = bar.querySelector(".refresh-note");
  const toggle = bar.querySelector(".refresh-switch");
  const problem = document.querySelector(".refresh-error");

  let isPaused = false;
  let timer = 0;
  let running = null;
  let updatedAt = new Date();

  const clock = (moment) => `${moment.toISOString().slice(11, 19)} UTC`;

  // Rows that move, appear or vanish are told apart by their key.
  const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.id || node.dataset.key || "" : "");
  const isSame = (one, other) => one.nodeName === other.nodeName && key(one) === key(other);

  function mergeAttributes(old, fresh) {
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
  }

  function merge(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    if (old.isEqualNode(fresh)) return;
    mergeAttributes(old, fresh);
    mergeChildren(old, fresh);
  }

  function mergeChildren(old, fresh) {
    let place = old.firstChild;
    for (const child of [...fresh.childNodes]) {
      let match = place;
      // Only a key finds a node further on: any other of the same name may belong to what comes later.
      while (key(child) && match && !isSame(match, child)) match = match.nextSibling;
      if (!match || !isSame(match, child)) {
        old.insertBefore(child, place);
        continue;
      }
      // What stands between is gone, or comes later and is made anew: the order changes seldom.
      while (place !== match) {
        const gone = place;
        place = place.nextSibling;
        gone.remove();
      }
      merge(match, child);
      place = match.nextSibling;
    }
    while (place) {
      const gone = place;
      place = place.nextSibling;
      gone.remove();
    }
  }

  function show() {
    if (isPaused) note.textContent = `Paused, updated at ${clock(updatedAt)}`;
    else if (document.hidden) note.textContent = `Paused while hidden, updated at ${clock(updatedAt)}`;
    else note.textContent = `Updated at ${clock(updatedAt)}`;
    toggle.textContent = isPaused ? "Resume" : "Pause";
  }

  function fail(text) {
    // Set only when it changes: a screen reader says it once.
    if (problem.textContent !== text) problem.textContent = text;
    problem.hidden = !text;
    target.classList.toggle("is-stale", Boolean(text));
  }

  async function refresh() {
    const attempt = new AbortController();
    running = attempt;
    const limit = setTimeout(() => attempt.abort(), PATIENCE_MS);
    try {
      const response = await fetch(bar.dataset.refresh, { redirect: "manual", cache: "no-store", signal: attempt.signal });
      if (response.type === "opaqueredirect") {
        fail("You are signed out: reload the page to sign in again.");
        return;
      }
      if (!response.ok) throw new Error(`it answered ${response.status}`);
      const text = await response.text();
      if (running !== attempt) return;
      const fresh = document.createElement("template");
      fresh.innerHTML = text;
      mergeChildren(target, fresh.content);
      updatedAt = new Date();
      fail("");
    } catch (error) {
      if (running === attempt) fail(`The server does not answer; the figures are of ${clock(updatedAt)}.`);
    } finally {
      clearTimeout(limit);
      if (running === attempt) {
        running = null;
        show();
        schedule();
      }
    }
  }

  function schedule() {
    clearTimeout(timer);
    if (!isPaused && !document.hidden) timer = setTimeout(refresh, EVERY_MS);
  }

  function restart() {
    clearTimeout(timer);
    if (running) {
      const attempt = running;
      running = null;
      attempt.abort();
    }
    show();
    if (!isPaused && !document.hidden) refresh();
  }

  toggle.addEventListener("click", () => {
    isPaused = !isPaused;
    restart();
  });
  document.addEventListener("visibilitychange", restart);

  toggle.hidden = false;
  show();
  schedule();
})();
