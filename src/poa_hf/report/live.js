// ask for news every few seconds, and put them in place of what has changed: scroll position, choice, focus and order stay
const status = document.getElementById("live"), started = status.textContent;
let version = null;
// evaluations by their names, as there may be more of them now
const named = option => option && `${option.parentElement.label}: ${option.textContent}`;
const kept = () => ({
  choice: named(document.getElementById("choice")?.selectedOptions[0]),
  sorted: [...document.querySelectorAll("thead th[aria-sort]")].map(head => [head.cellIndex, head.getAttribute("aria-sort")]),
  boxes: [...document.querySelectorAll(".scroll")].map(box => [box.scrollLeft, box.scrollTop]),
  focus: [...document.querySelectorAll("main [tabindex], main button, main select, main a")].indexOf(document.activeElement),
  at: document.activeElement?.dataset?.at,
  x: scrollX, y: scrollY,
});
function restore(before) {
  const select = document.getElementById("choice");
  const chosen = select && [...select.options].find(option => named(option) === before.choice);
  if (chosen) {
    select.value = chosen.value;
    choose(chosen.value);
  }
  for (const [at, order] of before.sorted) {
    const head = document.querySelector("thead")?.rows[0].cells[at];
    for (let click = 0; head && head.getAttribute("aria-sort") !== order && click < 2; click++) head.firstElementChild.click();
  }
  document.querySelectorAll(".scroll").forEach((box, index) => {
    if (before.boxes[index]) [box.scrollLeft, box.scrollTop] = before.boxes[index];
  });
  const focusable = document.querySelectorAll("main [tabindex], main button, main select, main a");
  if (before.focus >= 0) focusable[before.focus]?.focus({preventScroll: true});
  if (before.at !== undefined && document.activeElement.matches("[data-lines] > .area")) read(document.activeElement, Number(before.at));
  hints();
  scrollTo(before.x, before.y);
}
async function refresh() {
  try {
    const now = await (await fetch("version", {cache: "no-store"})).text();
    if (version !== null && now !== version) {
      const page = new DOMParser().parseFromString(await (await fetch("./", {cache: "no-store"})).text(), "text/html");
      const before = kept();
      for (const part of ["header", "main"]) document.querySelector(part).replaceWith(page.querySelector(part));
      restore(before);
    }
    version = now;
    status.textContent = started;
  } catch {
    status.textContent = "Not connected: poa report --watch has ended.";
  }
  setTimeout(refresh, document.hidden ? 10000 : 2000);
}
refresh();
