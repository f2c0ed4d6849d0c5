// The basket. Without this script the form has one size and one quantity for each pizza. With it, a pizza can be
// ordered in several sizes, the total is live, and the basket outlives a reload.
import { money } from "./money.js";

const KEY = "pizzaflow.basket";
const MAX_QUANTITY = 100; // of one line

const form = document.querySelector("[data-order-form]");
const find = (name, root = document) => root.querySelector(`[data-${name}]`);
const findAll = (name, root = document) => [...root.querySelectorAll(`[data-${name}]`)];
const show = (element, visible) => { if (element) element.hidden = !visible; };

// The menu as the page shows it: the pizzas with their sizes and prices, by id.
const menu = new Map();
for (const card of findAll("pizza")) {
  const radios = [...card.querySelectorAll("input[type=radio]")];
  if (radios.length === 0) continue;
  menu.set(card.dataset.pizza, {
    card, radios, name: card.dataset.name, picture: card.dataset.picture,
    sizes: new Map(radios.map((r) => [r.value, { price: Number(r.dataset.price), label: r.dataset.label }])),
  });
}

// The lines of a refused form come back from the server and replace the basket in the storage.
let lines = [];
function load() {
  let stored = [];
  try {
    stored = JSON.parse(localStorage.getItem(KEY) || "[]");
  } catch { /* no storage, or no JSON in it: the basket begins empty */ }
  const sent = JSON.parse(form.dataset.lines);
  const source = sent.length > 0 ? sent : Array.isArray(stored) ? stored : [];
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
  if (line) line.quantity = Math.min(MAX_QUANTITY, line.quantity + quantity);
  else lines.push({ id, size, quantity: Math.min(MAX_QUANTITY, quantity) });
}

function changeQuantity(line, by) {
  line.quantity = Math.min(MAX_QUANTITY, line.quantity + by);
  if (line.quantity < 1) lines = lines.filter((l) => l !== line);
  save();
  render();
}

const price = (line) => menu.get(line.id).sizes.get(line.size).price;
const formatMoney = money(form.dataset.lang, form.dataset.currency);

function announce(text) { find("say").textContent = text; }

function renderLine(line) {
  const pizza = menu.get(line.id);
  const size = pizza.sizes.get(line.size).label;
  const item = find("line").content.firstElementChild.cloneNode(true);
  find("picture", item).src = pizza.picture;
  find("name", item).textContent = pizza.name;
  find("size", item).textContent = `${size} · ${formatMoney(price(line))}`;
  find("quantity", item).textContent = line.quantity;
  find("sum", item).textContent = formatMoney(price(line) * line.quantity);
  for (const [name, by] of [["less", -1], ["more", 1]]) {
    const button = find(name, item);
    button.dataset.for = `${line.id} ${line.size} ${name}`;
    button.setAttribute("aria-label", `${button.getAttribute("aria-label")}: ${pizza.name}, ${size}`);
    button.disabled = by > 0 && line.quantity >= MAX_QUANTITY;
    button.addEventListener("click", () => {
      changeQuantity(line, by);
      const again = document.querySelector(`[data-for="${button.dataset.for}"]`);
      (again && !again.disabled ? again : find("basket-title")).focus();
      announce(`${pizza.name}, ${size}: ${Math.max(0, line.quantity)}`);
    });
  }
  return item;
}

function render() {
  const count = lines.reduce((n, l) => n + l.quantity, 0);
  const total = lines.reduce((n, l) => n + l.quantity * price(l), 0);
  find("basket-lines").replaceChildren(...lines.map(renderLine));
  for (const element of findAll("basket-total")) element.textContent = count ? formatMoney(total) : "";
  find("basket-count").textContent = count;
  show(find("basket-empty"), count === 0);
  show(find("basket-sum"), count > 0);
  if (count > 0) {
    show(find("basket-missing"), false);
    show(find("basket-fault"), false);
  }
  for (const [id, pizza] of menu) renderCard(id, pizza);
  renderBar();
}

function renderCard(id, { card, radios, sizes }) {
  const chosen = radios.find((r) => r.checked) ?? radios[0];
  chosen.checked = true;
  find("add-price", card).textContent = formatMoney(sizes.get(chosen.value).price);
  const count = lines.filter((l) => l.id === id).reduce((n, l) => n + l.quantity, 0);
  const badge = find("add-count", card);
  badge.textContent = count;
  show(badge, count > 0);
}

// The bar at the bottom links to the checkout until the checkout is on the screen.
let atCheckout = false;
function renderBar() {
  const visible = lines.length > 0 && !atCheckout;
  show(find("bar"), visible);
  document.body.classList.toggle("with-bar", visible);
}
new IntersectionObserver(([entry]) => { atCheckout = entry.isIntersecting; renderBar(); }).observe(document.getElementById("checkout"));

for (const [id, { card, radios, name, sizes }] of menu) {
  const button = find("add", card);
  show(button, true);
  button.addEventListener("click", () => {
    const size = radios.find((r) => r.checked).value;
    add(id, size, 1);
    save();
    render();
    const line = lines.find((l) => l.id === id && l.size === size);
    announce(`${name}, ${sizes.get(size).label}: ${line.quantity}`);
  });
  for (const radio of radios) radio.addEventListener("change", render);
}
for (const element of findAll("plain")) show(element, false);
for (const name of ["basket", "basket-link"]) show(find(name), true);

// The form sends the lines of the basket in place of the controls of the menu.
form.addEventListener("formdata", ({ formData }) => {
  for (const name of [...formData.keys()]) if (/^(size|quantity)_/.test(name)) formData.delete(name);
  for (const l of lines) {
    formData.append(`size_${l.id}`, l.size);
    formData.append(`quantity_${l.id}`, String(l.quantity));
  }
});

// A form is sent once. A second request would be answered with the first one's order, by the idempotency key.
let sent = false;
form.addEventListener("submit", (event) => {
  if (sent) {
    event.preventDefault();
    return;
  }
  if (lines.length === 0) {
    event.preventDefault();
    show(find("basket-missing"), true);
    document.getElementById("f-items").focus();
    return;
  }
  sent = true;
  find("submit").setAttribute("aria-disabled", "true");
  try {
    sessionStorage.setItem(KEY, "sent"); // the tracker empties the basket
  } catch { /* no storage: the tracker has no basket to empty */ }
});
window.addEventListener("pageshow", () => {
  sent = false;
  find("submit").removeAttribute("aria-disabled");
  load();
  save();
  render();
});

find("refused")?.focus();
