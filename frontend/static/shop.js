// The basket. Without this script the form has one size and one number for each pizza; with it, a pizza can be
// there in several sizes, the total is live, and what was chosen outlives a reload.
import { money } from "./money.js";

const KEY = "pizzaflow.basket";
const MOST = 100; // of one line

const form = document.querySelector("[data-order-form]");
const one = (name, root = document) => root.querySelector(`[data-${name}]`);
const all = (name, root = document) => [...root.querySelectorAll(`[data-${name}]`)];
const show = (element, visible) => { if (element) element.hidden = !visible; };

// The menu, as the page has it: what a line may be, and what it costs.
const menu = new Map();
for (const card of all("pizza")) {
  const radios = [...card.querySelectorAll("input[type=radio]")];
  if (radios.length === 0) continue;
  menu.set(card.dataset.pizza, {
    card, radios, name: card.dataset.name, picture: card.dataset.picture,
    sizes: new Map(radios.map((r) => [r.value, { price: Number(r.dataset.price), label: r.dataset.label }])),
  });
}

// What was sent and refused comes back from the server and counts more than what was kept here.
let lines = [];
function load() {
  let kept = [];
  try {
    kept = JSON.parse(localStorage.getItem(KEY) || "[]");
  } catch { /* no storage, or not ours: begin with nothing */ }
  const sent = JSON.parse(form.dataset.lines);
  const source = sent.length > 0 ? sent : Array.isArray(kept) ? kept : [];
  lines = [];
  for (const l of source) add(String(l?.id), String(l?.size), Number.parseInt(l?.quantity, 10));
}

function save() {
  try {
    localStorage.setItem(KEY, JSON.stringify(lines));
  } catch { /* no storage: the basket lives as long as the page */ }
}

function add(id, size, quantity) {
  if (!menu.get(id)?.sizes.has(size) || !(quantity > 0)) return;
  const line = lines.find((l) => l.id === id && l.size === size);
  if (line) line.quantity = Math.min(MOST, line.quantity + quantity);
  else lines.push({ id, size, quantity: Math.min(MOST, quantity) });
}

function change(line, by) {
  line.quantity = Math.min(MOST, line.quantity + by);
  if (line.quantity < 1) lines = lines.filter((l) => l !== line);
  save();
  draw();
}

const price = (line) => menu.get(line.id).sizes.get(line.size).price;
const write = money(form.dataset.lang, form.dataset.currency);

function say(text) { one("say").textContent = text; }

function drawLine(line) {
  const pizza = menu.get(line.id);
  const size = pizza.sizes.get(line.size).label;
  const item = one("line").content.firstElementChild.cloneNode(true);
  one("picture", item).src = pizza.picture;
  one("name", item).textContent = pizza.name;
  one("size", item).textContent = `${size} · ${write(price(line))}`;
  one("quantity", item).textContent = line.quantity;
  one("sum", item).textContent = write(price(line) * line.quantity);
  for (const [name, by] of [["less", -1], ["more", 1]]) {
    const button = one(name, item);
    button.dataset.for = `${line.id} ${line.size} ${name}`;
    button.setAttribute("aria-label", `${button.getAttribute("aria-label")}: ${pizza.name}, ${size}`);
    button.disabled = by > 0 && line.quantity >= MOST;
    button.addEventListener("click", () => {
      change(line, by);
      const again = document.querySelector(`[data-for="${button.dataset.for}"]`);
      (again && !again.disabled ? again : one("basket-title")).focus();
      say(`${pizza.name}, ${size}: ${Math.max(0, line.quantity)}`);
    });
  }
  return item;
}

function draw() {
  const count = lines.reduce((n, l) => n + l.quantity, 0);
  const total = lines.reduce((n, l) => n + l.quantity * price(l), 0);
  one("basket-lines").replaceChildren(...lines.map(drawLine));
  for (const element of all("basket-total")) element.textContent = count ? write(total) : "";
  one("basket-count").textContent = count;
  show(one("basket-empty"), count === 0);
  show(one("basket-sum"), count > 0);
  if (count > 0) {
    show(one("basket-missing"), false);
    show(one("basket-fault"), false);
  }
  for (const [id, pizza] of menu) drawCard(id, pizza);
  drawBar();
}

function drawCard(id, { card, radios, sizes }) {
  const chosen = radios.find((r) => r.checked) ?? radios[0];
  chosen.checked = true;
  one("add-price", card).textContent = write(sizes.get(chosen.value).price);
  const count = lines.filter((l) => l.id === id).reduce((n, l) => n + l.quantity, 0);
  const badge = one("add-count", card);
  badge.textContent = count;
  show(badge, count > 0);
}

// The bar at the bottom leads to the checkout until that is on the screen.
let atCheckout = false;
function drawBar() {
  const visible = lines.length > 0 && !atCheckout;
  show(one("bar"), visible);
  document.body.classList.toggle("with-bar", visible);
}
new IntersectionObserver(([entry]) => { atCheckout = entry.isIntersecting; drawBar(); }).observe(document.getElementById("checkout"));

for (const [id, { card, radios, name, sizes }] of menu) {
  const button = one("add", card);
  show(button, true);
  button.addEventListener("click", () => {
    const size = radios.find((r) => r.checked).value;
    add(id, size, 1);
    save();
    draw();
    const line = lines.find((l) => l.id === id && l.size === size);
    say(`${name}, ${sizes.get(size).label}: ${line.quantity}`);
  });
  for (const radio of radios) radio.addEventListener("change", draw);
}
for (const element of all("plain")) show(element, false);
for (const name of ["basket", "basket-link"]) show(one(name), true);

// What is sent are the lines of the basket, not the controls of the menu.
form.addEventListener("formdata", ({ formData }) => {
  for (const name of [...formData.keys()]) if (/^(size|quantity)_/.test(name)) formData.delete(name);
  for (const l of lines) {
    formData.append(`size_${l.id}`, l.size);
    formData.append(`quantity_${l.id}`, String(l.quantity));
  }
});

// The same form is never under way twice. The server would see to it as well: it knows the form by its key.
let sent = false;
form.addEventListener("submit", (event) => {
  if (sent) {
    event.preventDefault();
    return;
  }
  if (lines.length === 0) {
    event.preventDefault();
    show(one("basket-missing"), true);
    document.getElementById("f-items").focus();
    return;
  }
  sent = true;
  one("submit").setAttribute("aria-disabled", "true");
  try {
    sessionStorage.setItem(KEY, "sent"); // the tracker empties the basket
  } catch { /* no storage: nothing was kept that had to be emptied */ }
});
window.addEventListener("pageshow", () => {
  sent = false;
  one("submit").removeAttribute("aria-disabled");
  load();
  save();
  draw();
});

one("refused")?.focus();
