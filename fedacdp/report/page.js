"use strict";
// The explorer: three lists and a slider that offer what was measured and nothing else. All texts and numbers come
// from the page's own data; texts are set as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg";

function nearest(items, value, of) {
  let best = 0;
  items.forEach((item, place) => {
    if (Math.abs(of(item) - value) < Math.abs(of(items[best]) - value)) best = place;
  });
  return best;
}

function fill(select, items, chosen) {
  select.replaceChildren(...items.map((item, place) => new Option(item.name, place)));
  select.value = chosen;
  select.closest("label").hidden = select.dataset.part === "variant" && items.length < 2;
}

function shape(svg, name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  svg.append(made);
  return made;
}

function bar(found) {
  const x = (value) => 6 + 388 * value;
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 400 64");
  svg.setAttribute("aria-hidden", "true");
  const box = (from, to, kind) => shape(svg, "rect", { x: x(from), y: 8, width: x(to) - x(from), height: 28, class: kind });
  box(0, 1, "whole");
  if (found.floor > 0) box(0, found.floor, "excluded");
  if (found.ceiling < 1) box(found.ceiling, 1, "excluded");
  if (found.low !== undefined) box(found.low, found.high, "interval");
  if (found.without !== undefined) {
    shape(svg, "line", { x1: x(found.without), x2: x(found.without), y1: 4, y2: 40, class: "without" });
  }
  for (const seed of found.seeds) shape(svg, "circle", { cx: x(seed), cy: 22, r: 3, class: "seed" });
  shape(svg, "line", { x1: x(found.mean), x2: x(found.mean), y1: 4, y2: 40, class: "mean" });
  for (const [at, text, anchor] of [[0, "0 %", "start"], [0.5, "50 %", "middle"], [1, "100 %", "end"]]) {
    shape(svg, "text", { x: at === 0.5 ? x(at) : at * 400, y: 58, "text-anchor": anchor }).textContent = text;
  }
  return svg;
}

function explore(box, mechanisms) {
  const part = (name) => box.querySelector(`[data-part="${name}"]`);
  const [mechanism, epsilon, variant, size] = ["mechanism", "epsilon", "variant", "size"].map(part);
  const wanted = { epsilon: null, budget: null, variant: null, alpha: null }; // what was last asked for, also where it is not there
  const article = box.closest("article").id;

  function show() {
    const epsilons = mechanisms[mechanism.value].epsilons;
    if (wanted.epsilon === null) wanted.epsilon = epsilons[0].value; // without privacy there is none
    let at = epsilons.findIndex((item) => item.name === wanted.budget);
    if (at < 0) at = nearest(epsilons, Math.log(wanted.epsilon), (item) => Math.log(item.value));
    fill(epsilon, epsilons, at);
    const variants = epsilons[at].variants;
    const same = variants.findIndex((item) => item.name === wanted.variant);
    fill(variant, variants, Math.max(0, same));
    const points = variants[Math.max(0, same)].points;
    if (wanted.alpha === null) wanted.alpha = points[Math.floor(points.length / 2)].alpha;
    const place = nearest(points, wanted.alpha, (item) => item.alpha);
    const point = points[place];
    size.max = points.length - 1;
    size.value = place;
    size.disabled = points.length < 2;
    size.setAttribute("aria-valuetext", `${point.share} of the users`);
    part("share").textContent = point.share;
    part("sizes").textContent = points.map((item) => item.share).join(", ");
    part("says").replaceChildren(...point.says.map((text) => Object.assign(document.createElement("p"), { textContent: text })));
    part("bars").replaceChildren(...point.bars.flatMap((found) => {
      const title = Object.assign(document.createElement("p"), { textContent: found.of, className: "frame" });
      return found.of ? [title, bar(found)] : [bar(found)];
    }));
    part("legend").hidden = point.bars.length === 0;
    part("runs").replaceChildren(...point.runs.flatMap(([id, seed]) => [
      Object.assign(document.createElement("a"), { href: `#${article}-${id}`, textContent: id }), ` (${seed}) `,
    ]));
    part("config").textContent = JSON.stringify(point.config, null, 1);
  }

  const chosen = () => mechanisms[mechanism.value].epsilons[epsilon.value];
  mechanism.addEventListener("change", show);
  epsilon.addEventListener("change", () => {
    wanted.epsilon = chosen().value;
    wanted.budget = chosen().name;
    show();
  });
  variant.addEventListener("change", () => {
    wanted.variant = chosen().variants[variant.value].name;
    show();
  });
  size.addEventListener("input", () => {
    wanted.alpha = chosen().variants[variant.value].points[size.value].alpha;
    show();
  });
  fill(mechanism, mechanisms, 0);
  show();
  box.hidden = false;
}

const measured = JSON.parse(document.getElementById("measured").textContent);
for (const [id, mechanisms] of Object.entries(measured)) {
  explore(document.getElementById(`${id}-explore`), mechanisms);
}
// A link to a run must find it: what is folded around it opens.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", unfold);
if (location.hash) unfold();
document.documentElement.dataset.ready = Math.round(performance.now());
