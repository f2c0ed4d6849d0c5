// The tracker. The server tells that the order took a step; the page is then asked for again and its living part
// replaced, so that there is one place that knows what a status looks like in every language.
const KEY = "pizzaflow.basket";
const tracker = document.querySelector("[data-tracker]");
const one = (name, root = tracker) => root.querySelector(`[data-${name}]`);
let version = Number(tracker.dataset.version);
let final = tracker.dataset.final === "true";

// The order that this browser has just sent is placed: its basket is done with.
try {
  if (sessionStorage.getItem(KEY) === "sent") {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  }
} catch { /* no storage, no basket */ }

const clock = new Intl.DateTimeFormat(tracker.dataset.lang, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat(tracker.dataset.lang, { day: "numeric", month: "long" });
function localTimes() {
  for (const time of tracker.querySelectorAll("time")) {
    const at = new Date(time.dateTime);
    const today = at.toDateString() === new Date().toDateString();
    time.textContent = today ? clock.format(at) : `${day.format(at)}, ${clock.format(at)}`;
  }
}
localTimes();

let newest = version; // that we were told of
let working = false;
async function refresh() {
  if (working) return;
  working = true;
  for (let pause = 500; version < newest; pause = Math.min(2 * pause, 8000)) {
    try {
      const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.statusText);
      take(new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-tracker]"));
    } catch { /* away for a moment: again below */ }
    if (version < newest) await new Promise((done) => setTimeout(done, pause));
  }
  working = false;
}

function take(fresh) {
  if (!fresh || Number(fresh.dataset.version) <= version) return;
  version = Number(fresh.dataset.version);
  final = fresh.dataset.final === "true";
  one("live").replaceChildren(...one("live", fresh).childNodes);
  one("link").textContent = one("link", fresh).textContent;
  one("say").textContent = one("headline").textContent;
  document.title = `${one("headline").textContent} · ${tracker.querySelector(".number").textContent} · Pizzaflow`;
  localTimes();
  if (final) source?.close();
}

// A browser reconnects by itself after a broken connection, but not after an answer that is an error.
let source;
function listen() {
  source = new EventSource(`/api/v1/orders/${encodeURIComponent(tracker.dataset.order)}/events`);
  source.addEventListener("open", () => { if (!final) one("link").textContent = one("link").dataset.linked; });
  source.addEventListener("message", ({ data }) => {
    newest = Math.max(newest, JSON.parse(data).version);
    refresh();
  });
  source.addEventListener("error", () => {
    if (final) return;
    one("link").textContent = one("link").dataset.lost;
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 3000 + Math.random() * 2000);
  });
}
if (!final) listen();
