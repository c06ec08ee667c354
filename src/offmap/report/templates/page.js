"use strict";
(() => {
  const how = document.getElementById("how");
  if (matchMedia("(max-width: 700px)").matches) how.open = false;
  addEventListener("beforeprint", () => { how.open = true; });
  const list = document.getElementById("cases");
  const cases = Array.from(list.children);
  const controls = document.getElementById("controls");
  if (cases.length < 2) return;
  const search = document.getElementById("search");
  const sort = document.getElementById("sort");
  const found = document.getElementById("found");
  const chips = Array.from(controls.querySelectorAll("button"));
  let verdict = "all";
  const by = {
    place: (a, b) => a.dataset.place - b.dataset.place,
    calm: (a, b) => b.dataset.place - a.dataset.place,
    order: (a, b) => a.dataset.order - b.dataset.order,
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  };
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let n = 0;
    for (const item of cases) {
      const shown = (verdict === "all" || item.dataset.verdict === verdict) && item.dataset.name.toLowerCase().includes(wanted);
      item.hidden = !shown;
      n += shown;
    }
    found.textContent = `${n.toLocaleString("en")} shown`;
  };
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      verdict = chip.dataset.show;
      for (const other of chips) other.setAttribute("aria-pressed", String(other === chip));
      filter();
    });
  }
  search.addEventListener("input", filter);
  sort.addEventListener("change", () => list.append(...cases.sort(by[sort.value])));
  controls.hidden = false;
  filter();
})();
