// The gallery: filters items, pages through them and draws the two answers side by side.
// What models wrote is hostile: it enters the page through textContent alone, never as HTML, an attribute or an address.
"use strict";

(function () {
  const root = document.getElementById("gallery-app");
  const data = window.MR1_GALLERY;
  if (!root || !data) return;

  const PAGE = 12;
  const form = root.querySelector("form");
  const controls = form.elements;
  const cards = root.querySelector(".cards");
  const count = root.querySelector(".gallery-count");
  const note = root.querySelector(".gallery-note");
  const pagers = Array.from(root.querySelectorAll(".pager"));
  const sides = new Map(data.sides.map((side) => [side.key, side]));
  const loading = new Map();
  let rows = [];
  let page = 0;
  let turn = 0;

  // --- building blocks

  function element(name, options, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(options || {})) {
      if (key === "class") made.className = value;
      else if (key === "text") made.textContent = value;
      else made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  // Control characters and those that turn the direction of text are shown, not obeyed.
  function visible(text) {
    return text
      .replace(/[\u0000-\u0008\u000b-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
      .replace(/[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (c) => "⟨U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "⟩")
      .replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
  }

  function option(value, text) {
    return element("option", { value, text });
  }

  function load(part) {
    if (data.parts[part]) return Promise.resolve(data.parts[part]);
    if (!loading.has(part)) {
      loading.set(part, new Promise((resolve, reject) => {
        const script = element("script", { src: data.folder + "/" + part + ".js" });
        script.onload = () => resolve(data.parts[part]);
        script.onerror = () => { loading.delete(part); reject(new Error(data.folder + "/" + part + ".js is missing: copy the whole folder of the report")); };
        document.head.append(script);
      }));
    }
    return loading.get(part);
  }

  // --- controls

  function fillSides(select) {
    const groups = new Map();
    for (const side of data.sides) {
      if (!groups.has(side.group)) groups.set(side.group, []);
      groups.get(side.group).push(option(side.key, visible(side.label)));
    }
    for (const [group, options] of groups) {
      if (group) select.append(element("optgroup", { label: "trained on " + visible(group) }, ...options));
      else select.append(...options);
    }
  }

  // The method that "fixed" and "broken" speak of: GRPO-D where one side is, else B.
  function subject() {
    const a = sides.get(controls.a.value), b = sides.get(controls.b.value);
    return a.method === "grpo-d" && b.method !== "grpo-d" ? "a" : "b";
  }

  function sideName(which) {
    const side = sides.get(controls[which].value), other = sides.get(controls[which === "a" ? "b" : "a"].value);
    return side.method === other.method ? which.toUpperCase() + " (" + side.methodName + ")" : side.methodName;
  }

  function relabel() {
    const who = subject();
    const name = visible(sideName(who)), other = visible(sideName(who === "a" ? "b" : "a"));
    controls.verdict.querySelector('[value="fixed"]').textContent = "fixed by " + name + " (" + other + " wrong)";
    controls.verdict.querySelector('[value="broken"]').textContent = "broken by " + name + " (" + other + " right)";
  }

  function fillValues(select, values, all, name) {
    const before = select.value;
    select.replaceChildren(option("", all), ...values.map((value) => option(String(value), name(value))));
    select.value = values.map(String).includes(before) ? before : "";
    select.closest("label").hidden = values.length < 2;
  }

  // --- rows: an item with both answers

  function chosenTasks() {
    return data.tasks.filter((task) => !controls.task.value || task.key === controls.task.value);
  }

  async function gather() {
    const a = sides.get(controls.a.value), b = sides.get(controls.b.value);
    const parts = await Promise.all(chosenTasks().map(async (task) => {
      const [items, ones, others] = await Promise.all([
        load(task.items),
        a.parts[task.key] ? load(a.parts[task.key]) : [],
        b.parts[task.key] ? load(b.parts[task.key]) : [],
      ]);
      return items.map((item, index) => ({ task, item, a: ones[index] || null, b: others[index] || null }));
    }));
    return parts.flat();
  }

  function right(answer) {
    return answer ? answer.scores[controls.metric.value] : undefined;
  }

  const verdicts = {
    fixed: (row, who, other) => right(row[who]) === 1 && right(row[other]) === 0,
    broken: (row, who, other) => right(row[who]) === 0 && right(row[other]) === 1,
    both: (row) => right(row.a) === 1 && right(row.b) === 1,
    neither: (row) => right(row.a) === 0 && right(row.b) === 0,
    graders: (row) => [row.a, row.b].some((one) => one && "acc" in one.scores && "acc_r1v" in one.scores && one.scores.acc !== one.scores.acc_r1v),
    unread: (row) => [row.a, row.b].some((one) => one && one.scores.answered === 0),
    form: (row) => [row.a, row.b].some((one) => one && one.scores.format === 0),
  };

  function filtered() {
    const who = subject(), other = who === "a" ? "b" : "a";
    const verdict = verdicts[controls.verdict.value];
    const kind = controls.kind.value, level = controls.level.value, family = controls.family.value, text = controls.text.value.trim().toLowerCase();
    return rows.filter((row) =>
      (!verdict || verdict(row, who, other)) &&
      (!kind || row.item.kind === kind) &&
      (!level || String(row.item.level) === level) &&
      (!family || row.item.family === family) &&
      (!text || [row.item.question, row.item.gold, row.item.name, row.a && row.a.text, row.b && row.b.text].some((one) => one && one.toLowerCase().includes(text))));
  }

  // --- drawing

  function verdictChip(metric, answer, read) {
    const score = answer.scores[metric];
    const state = score === undefined ? "none" : score === 1 ? "right" : "wrong";
    const word = { right: "✓ right", wrong: "✗ wrong", none: "no verdict" }[state];
    const chip = element("li", { class: "verdict " + state }, element("code", { text: metric }), " " + word);
    if (read !== undefined) chip.append(element("span", { class: "read", text: read === null ? " read nothing" : " read " + visible(read) }));
    return chip;
  }

  function output(text) {
    const end = text.lastIndexOf("</think>");
    const opened = text.indexOf("<think>");
    let thought = "", rest = text;
    if (end >= 0) { thought = text.slice(0, end + 8); rest = text.slice(end + 8); }
    else if (opened >= 0) { thought = text; rest = ""; }
    const shown = element("div", { class: "output" });
    if (thought) {
      const inner = thought.replace(/^\s*<think>/, "").replace(/<\/think>$/, "");
      const words = (inner.match(/\S+/g) || []).length;
      const label = "Reasoning, " + words + (words === 1 ? " word" : " words") + (end < 0 ? ", never closed" : "");
      shown.append(element("details", {}, element("summary", { text: label }), element("pre", { class: "model", text: visible(thought) })));
    }
    if (rest.trim()) shown.append(element("pre", { class: "model answer", text: visible(rest.trim()) }));
    else shown.append(element("p", { class: "muted", text: text.trim() ? "Nothing after the reasoning." : "The output is empty." }));
    return shown;
  }

  function answerBox(which, answer) {
    const side = sides.get(controls[which].value);
    const box = element("section", { class: "given m-" + known(side.method) });
    box.append(element("h3", {}, element("span", { class: "letter", text: which.toUpperCase() }), " ", element("span", { class: "mark", "aria-hidden": "true" }), " " + visible(side.label)));
    if (!answer) {
      box.append(element("p", { class: "muted", text: "Not evaluated on this item." }));
      return box;
    }
    const list = element("ul", { class: "verdicts" }, verdictChip("acc", answer, answer.value));
    if ("acc_r1v" in answer.scores || "format" in answer.scores) list.append(verdictChip("acc_r1v", answer, side.r1vRead ? answer.r1v : undefined));
    if (answer.scores.format === 0) list.append(element("li", { class: "verdict none", text: "out of form" }));
    box.append(list, output(answer.text));
    return box;
  }

  function known(method) {
    return ["base", "sft", "grpo", "grpo-d"].includes(method) ? method : "other";
  }

  function card(row) {
    const item = row.item;
    const title = element("p", { class: "item-name" }, element("strong", { text: visible(row.task.title) }), " · ", element("code", { text: visible(item.name || "item " + item.id) }));
    if (item.level !== null) title.append(" · level " + item.level);
    if (item.family) title.append(" · " + visible(item.family.replaceAll("_", " ")));
    if (item.kind) title.append(" ", element("span", { class: "tag", text: visible(item.kind) }));
    const picture = element("div", { class: "picture" });
    if (item.image) picture.append(element("img", { src: item.image, alt: "Picture of the item", loading: "lazy", decoding: "async" }));
    else picture.append(element("span", { class: "muted", text: "no picture" }));
    const asked = element("div", { class: "asked" }, title);
    asked.append(element("p", { class: "question" + (item.question ? "" : " muted"), text: visible(item.question || item.note || "The question is not at hand.") }));
    asked.append(element("p", { class: "gold" }, "Gold ", element("b", { text: visible(item.gold) })));
    return element("article", { class: "card" }, element("div", { class: "item" }, picture, asked), element("div", { class: "both" }, answerBox("a", row.a), answerBox("b", row.b)));
  }

  function drawPagers(pages) {
    for (const pager of pagers) {
      pager.hidden = pages < 2;
      const back = element("button", { type: "button", text: "← Previous" });
      const next = element("button", { type: "button", text: "Next →" });
      back.disabled = page === 0;
      next.disabled = page >= pages - 1;
      back.onclick = () => go(page - 1);
      next.onclick = () => go(page + 1);
      pager.replaceChildren(back, element("span", { text: "Page " + (page + 1) + " of " + pages }), next);
    }
  }

  function go(to) {
    page = to;
    draw();
    root.scrollIntoView({ block: "start" });
  }

  function draw() {
    const found = filtered();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    cards.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(card));
    const tasks = chosenTasks();
    const all = tasks.reduce((sum, task) => sum + task.of, 0);
    const kept = rows.length < all ? ", spaced evenly over the " + all.toLocaleString("en") + " evaluated" : "";
    count.textContent = found.length.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " items" + kept + ".";
    if (!found.length) count.textContent += " Nothing matches; loosen a filter.";
    const notes = tasks.map((task) => task.note).filter(Boolean);
    note.hidden = !notes.length;
    note.textContent = visible(notes.join(" "));
    drawPagers(pages);
    root.dataset.shown = String(found.length);
  }

  async function refresh() {
    const mine = ++turn;
    page = 0;
    root.dataset.state = "loading";
    relabel();
    try {
      const gathered = await gather();
      if (mine !== turn) return;
      rows = gathered;
    } catch (error) {
      count.textContent = error.message;
      root.dataset.state = "failed";
      return;
    }
    const levels = [...new Set(rows.map((row) => row.item.level).filter((level) => level !== null))].sort((x, y) => x - y);
    const families = [...new Set(rows.map((row) => row.item.family).filter(Boolean))].sort();
    const kinds = [...new Set(rows.map((row) => row.item.kind).filter(Boolean))].sort();
    fillValues(controls.kind, kinds, "every kind", visible);
    fillValues(controls.level, levels, "every level", (level) => "level " + level);
    fillValues(controls.family, families, "every family", (family) => visible(family.replaceAll("_", " ")));
    draw();
    root.dataset.state = "ready";
  }

  // --- start

  fillSides(controls.a);
  fillSides(controls.b);
  controls.a.value = data.a;
  controls.b.value = data.b;
  if (data.tasks.length > 1) controls.task.append(option("", "all tasks"));
  controls.task.append(...data.tasks.map((task) => option(task.key, visible(task.title))));
  controls.task.closest("label").hidden = data.tasks.length < 2;
  controls.a.closest("label").hidden = controls.b.closest("label").hidden = controls.swap.hidden = data.sides.length < 3;
  for (const name of ["a", "b", "task"]) controls[name].addEventListener("change", refresh);
  for (const name of ["verdict", "metric", "kind", "level", "family"]) controls[name].addEventListener("change", () => { page = 0; draw(); });
  controls.text.addEventListener("input", () => { page = 0; draw(); });
  controls.swap.addEventListener("click", () => {
    [controls.a.value, controls.b.value] = [controls.b.value, controls.a.value];
    refresh();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  refresh();
})();
