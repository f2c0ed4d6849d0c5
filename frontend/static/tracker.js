// The tracker. At each step of the order it fetches the page again and replaces the live part, so that only the
// server's template knows how a status looks in each language.
const KEY = "pizzaflow.basket";
const tracker = document.querySelector("[data-tracker]");
const find = (name, root = tracker) => root.querySelector(`[data-${name}]`);
let version = Number(tracker.dataset.version);
let final = tracker.dataset.final === "true";

// The order that this browser has just sent is placed: empty its basket.
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

let newest = version; // the highest version that the stream has sent
let refreshing = false;
async function refresh() {
  if (refreshing) return;
  refreshing = true;
  for (let pause = 500; version < newest; pause = Math.min(2 * pause, 8000)) {
    try {
      const answer = await fetch(location.pathname + location.search, { headers: { Accept: "text/html" } });
      if (!answer.ok) throw new Error(answer.statusText);
      replaceLive(new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-tracker]"));
    } catch { /* the server is away: the loop retries */ }
    if (version < newest) await new Promise((done) => setTimeout(done, pause));
  }
  refreshing = false;
}

function replaceLive(fresh) {
  if (!fresh || Number(fresh.dataset.version) <= version) return;
  version = Number(fresh.dataset.version);
  final = fresh.dataset.final === "true";
  find("live").replaceChildren(...find("live", fresh).childNodes);
  find("link").textContent = find("link", fresh).textContent;
  find("say").textContent = find("headline").textContent;
  document.title = `${find("headline").textContent} · ${tracker.querySelector(".number").textContent} · Pizzaflow`;
  localTimes();
  if (final) source?.close();
}

// An EventSource reconnects by itself after a broken connection, but not after an answer that is an error.
let source;
function openStream() {
  source = new EventSource(`/api/v1/orders/${encodeURIComponent(tracker.dataset.order)}/events`);
  source.addEventListener("open", () => { if (!final) find("link").textContent = find("link").dataset.linked; });
  source.addEventListener("message", ({ data }) => {
    newest = Math.max(newest, JSON.parse(data).version);
    refresh();
  });
  source.addEventListener("error", () => {
    if (final) return;
    find("link").textContent = find("link").dataset.lost;
    if (source.readyState === EventSource.CLOSED) setTimeout(openStream, 3000 + Math.random() * 2000);
  });
}
if (!final) openStream();
