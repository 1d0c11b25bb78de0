"use strict";

let charts = JSON.parse(document.getElementById("charts").textContent);
const content = document.getElementById("content");
const kept = { choices: new Map(), open: new Set() };
let library = null;
let observer = null;

// the plotting library is large: it is read when the first chart comes into view, after text and numbers were painted
function plotting() {
  library ??= new Promise((done) => requestAnimationFrame(() => setTimeout(() => {
    performance.mark("plotting");
    const script = document.createElement("script");
    script.textContent = document.getElementById("plotly").textContent;
    document.head.append(script);
    done(window.Plotly);
  }, 0)));
  return library;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function look() {
  const axis = { gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"), automargin: true, title: { standoff: 8 } };
  return { layout: {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("--text"), size: 12, family: "system-ui, sans-serif" },
    xaxis: axis, yaxis: axis, margin: { l: 48, r: 16, t: 12, b: 40 }, hoverlabel: { font: { family: "system-ui, sans-serif" } },
  } };
}

// a filter acts on the charts of its section, and on the traces that say they belong to one of its values
function chosen(section) {
  const values = {};
  for (const control of section.querySelectorAll("[data-filter]")) {
    if (control.closest(".filtered") !== section) continue;
    const key = control.dataset.filter;
    values[key] ??= new Set();
    if (control.type !== "checkbox" || control.checked) values[key].add(control.value);
  }
  return values;
}

function shown(trace, values) {
  return Object.entries(trace.meta ?? {}).every(([key, value]) => !values[key] || values[key].has(String(value)));
}

async function draw(place) {
  const Plotly = await plotting();
  const chart = charts[place.id];
  if (!chart || !place.isConnected) return;
  const values = chosen(place.closest(".filtered"));
  const data = chart.data.map((trace) => (trace.meta ? { ...trace, visible: shown(trace, values) } : trace));
  const layout = { ...chart.layout, template: look(), dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom" };
  const bar = ["lasso2d", "select2d", "autoScale2d"];
  await Plotly.react(place, data, layout, { responsive: true, displaylogo: false, modeBarButtonsToRemove: bar });
  place.dataset.drawn = "";
}

function report(error) {
  console.error(error);
}

function drawWhenSeen() {
  observer?.disconnect();
  observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) {
        observer.unobserve(entry.target);
        draw(entry.target).catch(report);
      }
    }
  }, { rootMargin: "300px" });
  for (const place of content.querySelectorAll(".plot")) observer.observe(place);
}

function drawAgain(within) {
  for (const place of within.querySelectorAll(".plot[data-drawn]")) draw(place).catch(report);
}

content.addEventListener("change", (event) => {
  const section = event.target.closest(".filtered");
  if (event.target.dataset.filter && section) drawAgain(section);
});

const themeButton = document.getElementById("theme");
function isDark() {
  const said = document.documentElement.dataset.theme;
  return said ? said === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
themeButton.addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  drawAgain(content);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAgain(content));
addEventListener("beforeprint", () => content.querySelectorAll(".plot").forEach((place) => draw(place).catch(report)));

// a live page: new content takes the place of the old one, choices stay
function remember() {
  content.querySelectorAll("[data-filter]").forEach((control, number) => {
    kept.choices.set(number, control.type === "checkbox" ? control.checked : control.value);
  });
  kept.open = new Set([...content.querySelectorAll("details[open]")].map((part) => part.dataset.keep));
}

function recall() {
  content.querySelectorAll("[data-filter]").forEach((control, number) => {
    const value = kept.choices.get(number);
    if (typeof value === "boolean" && control.type === "checkbox") control.checked = value;
    else if (control.options && [...control.options].some((option) => option.value === value)) control.value = value;
  });
  content.querySelectorAll("details").forEach((part) => { part.open = kept.open.has(part.dataset.keep); });
}

async function ask(stamp) {
  let again = stamp;
  try {
    const answer = await fetch(`state?seen=${encodeURIComponent(stamp)}`);
    if (answer.status === 200) {
      const news = await answer.json();
      remember();
      const height = scrollY;
      content.innerHTML = news.content;
      charts = news.charts;
      recall();
      scrollTo(0, height);
      drawWhenSeen();
      again = news.stamp;
    }
    document.body.dataset.server = "there";
  } catch {
    document.body.dataset.server = "gone";
  }
  setTimeout(ask, 2000, again);
}

drawWhenSeen();
if ("live" in document.body.dataset) setTimeout(ask, 2000, document.body.dataset.live);
