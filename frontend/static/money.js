// Amounts are integers in minor units. The browser formats them as event.Money.Format does on the server.
export function money(lang, currency) {
  const format = new Intl.NumberFormat(lang, { style: "currency", currency, minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return (minor) => format.format(minor / 100);
}
