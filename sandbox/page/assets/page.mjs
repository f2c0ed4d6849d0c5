// Fetches the page every two seconds and, if its version has changed, inserts the new
// parts without closing the details that are open.
const interval = 2000;
let version = document.documentElement.dataset.version;

function update(fresh) {
  for (const part of fresh.querySelectorAll("[data-live]")) {
    document.getElementById(part.id)?.replaceChildren(...part.childNodes);
  }
  for (const feed of fresh.querySelectorAll("[data-feed]")) {
    const shown = document.getElementById(feed.id);
    const size = feed.children.length;
    const added = [...feed.children].filter((item) => !document.getElementById(item.id));
    shown.prepend(...added);
    while (shown.children.length > size) shown.lastElementChild.remove();
  }
}

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { "If-None-Match": `"${version}"` } });
  if (answer.status !== 200) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  update(fresh);
  version = fresh.documentElement.dataset.version;
}

async function loop() {
  try {
    await refresh();
  } catch {
    // The sandbox is away: the next call retries.
  }
  setTimeout(loop, interval);
}

setTimeout(loop, interval);
