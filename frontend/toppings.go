package frontend

// toppings has an SVG drawing for each topping, around the point (0, 0), in units
// of the pizza's picture (240 × 240). They use presentation attributes, because the
// content security policy forbids style attributes when a picture is opened alone.
var toppings = map[string]string{
	"pepperoni": `<circle r="14" fill="#8f1d14"/><circle r="12.6" fill="#c8341f"/><circle cx="-2" cy="-2" r="9.5" fill="#d9482c"/>` +
		`<g fill="#f0a37f"><circle cx="-5" cy="-3" r="1.6"/><circle cx="3" cy="-6" r="1.2"/><circle cx="5" cy="3" r="1.7"/><circle cx="-2" cy="5" r="1.3"/><circle cx="1" cy="0" r="1"/></g>` +
		`<path d="M-9-7A12 12 0 0 1 1-12" fill="none" stroke="#f6b79a" stroke-width="1.6" stroke-linecap="round" opacity=".7"/>`,
	"basil": `<path d="M-15 1C-9-10 6-11 15-1 7 9-8 11-15 1Z" fill="#2f7d32"/><path d="M-15 1C-9-10 6-11 15-1Z" fill="#46a049"/>` +
		`<path d="M-14 1C-4-1 6-2 14-1M-6 0l4-5M1-1l4-4M-5 1l5 4M2 0l5 4" fill="none" stroke="#bfe3a4" stroke-width="1" stroke-linecap="round" opacity=".8"/>`,
	"mozzarella": `<path d="M-14 0C-15-9-6-13 1-12 10-12 16-6 14 2 13 10 5 13-3 12-10 12-14 7-14 0Z" fill="#f3e6c8"/>` +
		`<path d="M-11-1C-12-8-5-10 1-10 8-10 12-5 11 1 10 7 4 9-2 9-8 9-11 5-11-1Z" fill="#fffaf0"/><path d="M-6-4C-3-7 3-7 6-4" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/>`,
	"tomato": `<circle r="13" fill="#b3261a"/><circle r="11.4" fill="#e2492f"/><g fill="#f7a070"><path d="M0-9 4-2H-4Z"/><path d="M8-3 4 3 1-2Z"/><path d="M6 8-1 6 3 1Z"/><path d="M-6 8-3 1 1 6Z"/><path d="M-8-3-1-2-4 3Z"/></g>` +
		`<g fill="#fde2b0"><circle cx="0" cy="-5" r="1"/><circle cx="5" cy="-1" r="1"/><circle cx="3" cy="5" r="1"/><circle cx="-3" cy="5" r="1"/><circle cx="-5" cy="-1" r="1"/></g>`,
	"cherry": `<circle r="9" fill="#b3261a"/><circle cx="-1" cy="-1" r="7.6" fill="#e5432b"/><path d="M-5-4A6 6 0 0 1 0-6.4" fill="none" stroke="#ffc9b3" stroke-width="2" stroke-linecap="round"/>`,
	"mushroom": `<path d="M-14-1C-14-12 14-12 14-1 14 4 6 3 4 2L5 11C5 14-5 14-5 11L-4 2C-6 3-14 4-14-1Z" fill="#a98763"/>` +
		`<path d="M-12-2C-11-10 11-10 12-2 11 1 5 1 2.5 0L3.5 10C3 12-3 12-3.5 10L-2.5 0C-5 1-11 1-12-2Z" fill="#f4e6d0"/><path d="M-9-2C-6-5 6-5 9-2M0 3V9" fill="none" stroke="#b08c66" stroke-width="1.4" stroke-linecap="round"/>`,
	"olive":       `<circle r="7" fill="#2c2b33"/><circle cx="-1" cy="-1" r="5.6" fill="#4a4853"/><circle r="2.6" fill="#e3a94a"/>`,
	"greenolive":  `<circle r="7" fill="#5c6b1e"/><circle cx="-1" cy="-1" r="5.8" fill="#8a9a35"/><circle r="2.5" fill="#cf3b25"/>`,
	"greenpepper": `<path d="M-13 5C-11-9 9-11 13 3" fill="none" stroke="#2e6b26" stroke-width="6" stroke-linecap="round"/><path d="M-12 4C-10-8 8-9 12 2" fill="none" stroke="#6cb23f" stroke-width="3.4" stroke-linecap="round"/>`,
	"redpepper":   `<path d="M-13 5C-11-9 9-11 13 3" fill="none" stroke="#8d1a12" stroke-width="6" stroke-linecap="round"/><path d="M-12 4C-10-8 8-9 12 2" fill="none" stroke="#e4452d" stroke-width="3.4" stroke-linecap="round"/>`,
	"onion":       `<g fill="none" stroke-linecap="round"><path d="M-12 4A12 12 0 0 1 11-3" stroke="#8b3a76" stroke-width="3.4"/><path d="M-11 4A11 11 0 0 1 10-2" stroke="#f1d3ea" stroke-width="1.4"/><path d="M-7 6A8 8 0 0 1 8 2" stroke="#b765a2" stroke-width="2.4"/></g>`,
	"pineapple":   `<path d="M-12-6 10-11 13 5-7 11Z" fill="#c98a12" stroke="#c98a12" stroke-width="3" stroke-linejoin="round"/><path d="M-11-6 9-10 12 4-7 9Z" fill="#ffd54a"/><path d="M-6-6 -2 7M0-7 4 5M6-9 9 3" stroke="#f0b429" stroke-width="1.6" stroke-linecap="round"/>`,
	"ham":         `<path d="M-12-7C-5-11 7-10 12-7 12-1 11 6 9 9 2 11-7 10-11 8-13 3-13-3-12-7Z" fill="#cf6d78"/><path d="M-10-6C-4-9 6-8 10-6 10-1 9 4 8 7 2 9-6 8-9 6-11 2-11-3-10-6Z" fill="#f3a5aa"/><path d="M-6-3C-2-5 3-4 6-3M-5 3C-1 2 2 3 5 4" fill="none" stroke="#fbd3d3" stroke-width="1.8" stroke-linecap="round"/>`,
	"bacon":       `<path d="M-17 0C-12-8-8 6-3 0S6-8 9 0 15 5 17 0" fill="none" stroke="#7c1f17" stroke-width="9" stroke-linecap="round"/><path d="M-17 0C-12-8-8 6-3 0S6-8 9 0 15 5 17 0" fill="none" stroke="#c9503a" stroke-width="6.4" stroke-linecap="round"/><path d="M-16-1C-12-8-8 5-3-1S6-9 9-1 15 4 16-1" fill="none" stroke="#f6c9a8" stroke-width="2" stroke-linecap="round"/>`,
	"egg":         `<path d="M-30 2C-33-14-18-25-2-23 16-26 31-13 28 3 29 19 12 25-2 23-17 26-29 17-30 2Z" fill="#f4e8d2"/><path d="M-26 1C-28-12-15-21-2-19 13-22 26-11 24 2 25 15 10 21-2 19-15 21-25 14-26 1Z" fill="#fffdf6"/><circle r="11.5" fill="#ee9a10"/><circle cx="-1" cy="-1" r="10" fill="#ffb929"/><path d="M-6-5A8 8 0 0 1 0-8" fill="none" stroke="#ffe9b0" stroke-width="2.4" stroke-linecap="round"/>`,
	"chicken":     `<path d="M-13-3C-10-11 3-11 9-8 15-5 14 5 8 8 1 12-9 10-12 5-14 2-14 0-13-3Z" fill="#b97a3b"/><path d="M-11-3C-8-9 3-9 8-6 12-4 11 4 7 6 1 9-8 8-10 4-12 2-12-1-11-3Z" fill="#f0cd97"/><path d="M-6-7-1 7M1-8 6 6" stroke="#96561f" stroke-width="2" stroke-linecap="round" opacity=".8"/>`,
	"shrimp":      `<path d="M11-7C2-15-13-10-13 2-12 11-3 14 4 10" fill="none" stroke="#c4512f" stroke-width="9.4" stroke-linecap="round"/><path d="M11-7C2-15-13-10-13 2-12 11-3 14 4 10" fill="none" stroke="#ff9d74" stroke-width="7" stroke-linecap="round"/><path d="M4-14 2-8M-6-13-4-7M-14-6-8-3M-16 4-10 4M-11 13-8 7" stroke="#fff0e2" stroke-width="1.7" stroke-linecap="round"/><path d="M5 10 13 7 11 14Z" fill="#e2603a"/>`,
	"squid":       `<circle r="10" fill="none" stroke="#c9b596" stroke-width="6"/><circle r="10" fill="none" stroke="#fff3e3" stroke-width="4"/>`,
	"mussel":      `<path d="M-14 3C-9-11 7-12 15-2 9 9-6 12-14 3Z" fill="#20263a"/><path d="M-11 3C-6-6 6-7 12-1 6 6-5 8-11 3Z" fill="#5b6a8f"/><path d="M-8 3C-3-3 4-3 9 0 4 5-4 6-8 3Z" fill="#f09a4c"/>`,
	"jalapeno":    `<circle r="8" fill="#2f6b1f"/><circle r="6.4" fill="#b6d774"/><circle r="6.4" fill="none" stroke="#6aa52f" stroke-width="1.6"/><g fill="#fff6d8"><circle cx="-2.4" cy="-1.6" r="1.3"/><circle cx="2.4" cy="-1.6" r="1.3"/><circle cy="2.6" r="1.3"/></g>`,
	"chili":       `<path d="M-15-4C-8 8 6 10 16 2 8 4-4 3-10-6Z" fill="#c5210f" stroke="#8d140a" stroke-width="1" stroke-linejoin="round"/><path d="M-15-4-18-9" stroke="#3c7a2a" stroke-width="3" stroke-linecap="round"/><path d="M-8 0C-3 4 3 5 8 4" fill="none" stroke="#ff8a70" stroke-width="1.5" stroke-linecap="round"/>`,
	"corn":        `<g fill="#ffd23c" stroke="#d69a11" stroke-width=".9"><rect x="-6" y="-5" width="6" height="5.4" rx="2.2"/><rect x="1" y="-3" width="6" height="5.4" rx="2.2"/><rect x="-3" y="2" width="6" height="5.4" rx="2.2"/></g>`,
	"mince":       `<path d="M-9-3C-7-9 2-9 6-6 11-3 9 5 4 7-3 10-10 5-9-3Z" fill="#5b2f1a"/><path d="M-6-3C-4-6 1-6 4-4 7-2 5 3 2 4-3 6-7 3-6-3Z" fill="#8a4f2d"/>`,
	"bluecheese":  `<path d="M-9-5C-3-9 7-7 9-2 9 5 2 9-5 7-10 4-11-2-9-5Z" fill="#f8f1dd"/><g fill="#6f87a8"><circle cx="-3" cy="-2" r="2.2"/><circle cx="3" cy="1" r="1.8"/><circle cx="-2" cy="4" r="1.3"/><circle cx="4" cy="-4" r="1.1"/></g>`,
	"brie":        `<path d="M-12 7 9-9 13 5Z" fill="#fff8e6" stroke="#e3cf9f" stroke-width="2.4" stroke-linejoin="round"/><path d="M-6 4 8-5 10 3Z" fill="#ffe79a"/>`,
	"parmesan":    `<path d="M-12 2 8-6 12-1-4 7Z" fill="#fbe9b4" stroke="#dcb968" stroke-width="1.2" stroke-linejoin="round"/>`,
	"rocket":      `<path d="M-16 3C-12-1-10-6-6-3-4-8 1-9 3-4 7-8 13-7 15-2 11 0 12 4 7 4 5 8-1 8-2 4-6 7-11 6-16 3Z" fill="#3c8a35"/><path d="M-15 3C-5 2 5 0 14-2" stroke="#b9dd95" stroke-width="1.1" fill="none"/>`,
	"prosciutto":  `<path d="M-18 5C-14-9-6 4-1-7S12-9 18-3C14 9 7 0 3 8S-13 12-18 5Z" fill="#c9565a"/><path d="M-14 5C-11-4-5 5 0-3S11-6 14-2" fill="none" stroke="#f4b3ad" stroke-width="3.4" stroke-linecap="round"/><path d="M-10 8C-6 3-1 8 3 3" fill="none" stroke="#fbdcd5" stroke-width="2" stroke-linecap="round"/>`,
	"zucchini":    `<circle r="11" fill="#3f7a2c"/><circle r="9.2" fill="#dcebb0"/><circle r="5" fill="#eef5cd"/><g fill="#b5c878"><circle cx="-2" cy="-2" r="1"/><circle cx="2.4" cy="-1" r="1"/><circle cy="2.6" r="1"/></g>`,
	"lemon":       `<path d="M-12 4A12 12 0 0 1 12 4Z" fill="#f2c41f"/><path d="M-10 3A10 10 0 0 1 10 3Z" fill="#fff3b4"/><path d="M0 3V-7M0 3-7-3M0 3 7-3" stroke="#f2c41f" stroke-width="1.4"/>`,
	"parsley":     `<g fill="#4c9a3f"><ellipse cx="-2" cy="-1" rx="2.6" ry="1.5"/><ellipse cx="2" cy="-1.4" rx="2.4" ry="1.4" transform="rotate(40)"/><ellipse cx="0" cy="2" rx="2.2" ry="1.3" transform="rotate(-30)"/></g>`,
	"pepper":      `<circle r="1.4" fill="#3b2417"/>`,
}
