// Animations: a button to stop and to start (WCAG 2.2.2), and at rest from the start for who asks for less motion.
for (const gif of document.querySelectorAll('article img[src$=".gif"]')) {
  const still = document.createElement("canvas"), button = document.createElement("button");
  const show = (moving) => {
    if (!moving) {
      still.width = gif.naturalWidth; still.height = gif.naturalHeight;
      still.getContext("2d").drawImage(gif, 0, 0);
      still.style.width = `${gif.clientWidth || gif.naturalWidth}px`;
    }
    gif.hidden = !moving; still.hidden = moving;
    button.textContent = moving ? "Pause the animation" : "Play the animation";
  };
  still.setAttribute("role", "img"); still.setAttribute("aria-label", gif.alt);
  button.type = "button"; button.className = "animation-control";
  gif.after(still);
  (gif.closest(".picture") ?? still).after(button);
  const begin = () => show(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  gif.complete ? begin() : gif.addEventListener("load", begin, { once: true });
  button.addEventListener("click", () => show(gif.hidden));
}

// Precomputed figures: the frame that belongs to where the sliders stand. Without this script there are no sliders.
for (const box of document.querySelectorAll(".frames")) {
  const frames = [...box.querySelectorAll("img.frame")], inputs = [...box.querySelectorAll("input")];
  const said = document.createElement("p"); // the new picture in words, for who hears the page
  said.className = "visually-hidden"; said.setAttribute("aria-live", "polite");
  box.append(said);
  const draw = (event) => {
    let index = 0;
    for (const input of inputs) {
      const values = JSON.parse(input.dataset.values), at = Number(input.value);
      index = index * values.length + at;
      input.setAttribute("aria-valuetext", values[at]);
      input.parentElement.querySelector(".value").textContent = values[at];
    }
    frames.forEach((frame, number) => frame.classList.toggle("shown", number === index));
    if (event) said.textContent = frames[index].alt;
  };
  inputs.forEach((input) => input.addEventListener("input", draw));
  box.querySelector(".controls").hidden = false;
  draw(); // a browser may have kept where the sliders stood
}

// Tables that sort by a button in each header, and filter by words and verdict.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], first = [...body.rows];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)], numbers = !isNaN(x) && !isNaN(y) && x !== y;
    return (a === "") - (b === "") || (numbers ? x - y : a.localeCompare(b, "en", { numeric: true }));
  };
  // On a phone and in print book.css shows it other than as a table, which it remains for who hears it.
  const roles = { rowgroup: "thead, tbody", row: "tr", columnheader: "thead th", rowheader: "tbody th", cell: "td" };
  table.role = "table";
  for (const [role, parts] of Object.entries(roles)) table.querySelectorAll(parts).forEach((part) => (part.role = role));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button"; button.textContent = head.textContent; head.replaceChildren(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
      const sign = order === "ascending" ? 1 : -1;
      const sorted = [...first].sort((a, b) => {
        const [x, y] = [key(a, column), key(b, column)];
        return x === "" || y === "" ? compare(x, y) : sign * compare(x, y); // what has no value stays at the end
      });
      body.append(...sorted);
    });
  });
  const filter = document.querySelector(".scoreboard-filter");
  if (filter) {
    const [words, verdict] = filter.querySelectorAll("input, select"), count = filter.querySelector("[role=status]");
    const apply = () => {
      const wanted = words.value.toLowerCase().split(/\s+/);
      for (const row of first) {
        const text = row.textContent.toLowerCase();
        row.hidden = !wanted.every((word) => text.includes(word)) || (verdict.value && row.dataset.verdict !== verdict.value);
      }
      count.textContent = `${first.filter((row) => !row.hidden).length} of ${first.length} claims`;
    };
    filter.addEventListener("input", apply);
    addEventListener("pageshow", apply); // who comes back finds the words, which the browser restores after this script
    filter.hidden = false; apply();
  }
}

// What is wider than the page scrolls, so the keyboard must reach it, and who hears it must be told what it is; it fades
// at the edge beyond which it goes on.
const SCROLL = { "div.math": "Formula", ".output.text_html": "Table", ".picture": "Figure", "article pre": "Code",
  ".pst-scrollable-table-container": "Table" };
const kind = (box) => SCROLL[Object.keys(SCROLL).find((selector) => box.matches(selector))];
const boxes = document.querySelectorAll(Object.keys(SCROLL).join());
const edges = (box) => {
  box.classList.toggle("more-left", box.scrollLeft > 1);
  box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
};
const reach = () => boxes.forEach((box) => {
  const sideways = box.scrollWidth > box.clientWidth;
  if (sideways || box.scrollHeight > box.clientHeight + 1) {
    box.tabIndex = 0; box.role = "group"; box.ariaLabel = `${kind(box)}, scrolls${sideways ? " sideways" : ""}`;
  } else for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  edges(box);
});
const watched = new ResizeObserver(reach); // of windows, fonts, pictures that come in, solutions that open
boxes.forEach((box) => { watched.observe(box); box.addEventListener("scroll", () => edges(box), { passive: true }); });
const board = document.querySelector(".scoreboard"); // it has a name of its own
if (board) new ResizeObserver(() => edges(board)).observe(board), board.addEventListener("scroll", () => edges(board));

// Paper is white: in the dark the page is printed in the colours of the light.
const root = document.documentElement;
let theme;
addEventListener("beforeprint", () => { theme = root.dataset.theme; root.dataset.theme = "light"; });
addEventListener("afterprint", () => { root.dataset.theme = theme; });

// A link in the theme's dialog of contents leads to a place on this page, which the dialog would go on covering.
const contents = document.querySelector("#pst-secondary-sidebar-modal");
contents?.addEventListener("click", (event) => event.target.closest("a") && contents.close());

// The theme's names for these hide the words that they show (WCAG 2.5.3), and for the arrows of its menu it has none.
for (const named of document.querySelectorAll("article summary[aria-label], .search-button-field[aria-label]")) {
  named.removeAttribute("aria-label");
}
for (const summary of document.querySelectorAll(".bd-sidebar-primary li > details > summary")) {
  summary.setAttribute("aria-label", `Pages of ${summary.closest("li").querySelector("a").textContent.trim()}`);
}
