// Amounts are whole minor units, as everywhere; the browser writes them like the server does.
export function money(lang, currency) {
  const format = new Intl.NumberFormat(lang, { style: "currency", currency, minimumFractionDigits: 2, maximumFractionDigits: 2 });
  return (minor) => format.format(minor / 100);
}
