"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const charts = read("charts"), themes = read("themes");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// The look is set on the root element, so that style sheet and charts always agree; paper is light.
function draw(look) {
  document.documentElement.dataset.look = look;
  return Promise.all([...document.querySelectorAll(".chart")].map((place) => {
    const spec = { ...charts[place.dataset.chart], config: themes[look] };
    return vegaEmbed(place, spec, { actions: false, renderer: "svg", tooltip: { theme: look } });
  }));
}
const current = () => (dark.matches ? "dark" : "light");
draw(current());
dark.addEventListener("change", () => draw(current()));
// On paper nothing can be opened: what is folded is printed too, and folded again afterwards.
let folded = [];
window.addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const part of folded) part.open = true;
  document.documentElement.toggleAttribute("data-paper", true);
  draw("light");
});
window.addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
  document.documentElement.toggleAttribute("data-paper", false);
  draw(current());
});

for (const box of document.querySelectorAll(".truths")) {
  const section = box.closest("section");
  box.addEventListener("change", () => section.classList.toggle("hide-truths", !box.checked));
}
