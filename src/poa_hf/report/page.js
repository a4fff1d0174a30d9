// sort the rows by a column: numbers from the largest, texts from A; a second click reverses the order
document.addEventListener("click", event => {
  const button = event.target.closest("thead button");
  if (!button) return;
  const head = button.parentElement, at = head.cellIndex, body = head.closest("table").tBodies[0];
  const of = row => { const cell = row.cells[at]; return cell.dataset.value ?? cell.textContent; };
  const numeric = !head.classList.contains("text"), before = head.getAttribute("aria-sort");
  const descending = before ? before === "ascending" : numeric;
  const sign = descending ? -1 : 1;
  const compare = (a, b) => {
    const [x, y] = [of(a), of(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // unknown values come last
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...[...body.rows].sort(compare));
});

// show the charts of the evaluation that was chosen
function choose(value) {
  for (const part of document.querySelectorAll("[data-choice]")) part.hidden = part.dataset.choice !== value;
  hints();
}
document.addEventListener("change", event => { if (event.target.id === "choice") choose(event.target.value); });

// say so where a box holds more than it shows
function hints() {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1);
}
addEventListener("resize", hints);
hints();

// the values of a chart's lines below the pointer, or at a step that the arrow keys choose
function read(area, share) {
  const lines = JSON.parse(area.parentElement.dataset.lines);
  const nearest = points => points.reduce((a, b) => Math.abs(b[0] - share) < Math.abs(a[0] - share) ? b : a);
  const first = nearest(lines.flatMap(line => line.points));
  let ruler = area.querySelector(".ruler"), box = area.querySelector(".reading");
  if (!ruler) {
    ruler = area.appendChild(Object.assign(document.createElement("div"), {className: "ruler"}));
    box = area.appendChild(Object.assign(document.createElement("div"), {className: "reading"}));
    box.setAttribute("role", "status");
  }
  ruler.style.left = `${first[0]}%`;
  box.style.left = first[0] > 50 ? "" : `calc(${first[0]}% + .5rem)`;
  box.style.right = first[0] > 50 ? `calc(${100 - first[0]}% + .5rem)` : "";
  const said = [`${area.parentElement.dataset.x} ${first[2]}`];
  for (const line of lines) {
    const point = nearest(line.points);
    if (point[2] === first[2]) said.push(lines.length > 1 ? `${line.name}: ${point[3]}` : point[3]);
  }
  box.replaceChildren(...said.map(text => Object.assign(document.createElement("div"), {textContent: text})));
  area.dataset.at = first[0];
}
function unread(area) {
  for (const part of area.querySelectorAll(".ruler, .reading")) part.remove();
  delete area.dataset.at;
}
const areaOf = event => event.target.closest?.("[data-lines] > .area");
document.addEventListener("pointermove", event => {
  const area = areaOf(event);
  for (const other of document.querySelectorAll(".area[data-at]"))
    if (other !== area && other !== document.activeElement) unread(other);
  if (area) read(area, 100 * (event.clientX - area.getBoundingClientRect().left) / area.clientWidth);
});
document.addEventListener("focusout", event => { const area = areaOf(event); if (area) unread(area); });
document.addEventListener("keydown", event => {
  const area = areaOf(event);
  if (!area) return;
  if (event.key === "Escape") return unread(area);
  if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
  event.preventDefault();
  const lines = JSON.parse(area.parentElement.dataset.lines);
  const places = [...new Set(lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
  const now = "at" in area.dataset ? places.indexOf(Number(area.dataset.at)) : -1;
  const to = {ArrowLeft: now < 0 ? places.length - 1 : now - 1, ArrowRight: now + 1, Home: 0, End: places.length - 1}[event.key];
  read(area, places[Math.max(0, Math.min(places.length - 1, to))]);
});
