"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  // What would hide or turn around other text is shown by its code.
  const code = (c) => {
    const hex = c.codePointAt(0).toString(16);
    return hex.length > 4 ? `\\U${hex.padStart(8, "0")}` : hex.length > 2 ? `\\u${hex.padStart(4, "0")}` : `\\x${hex.padStart(2, "0")}`;
  };
  const named = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
  const clean = (text) => String(text).replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (c) => named[c] ?? code(c));

  // An element with attributes, handlers and children; strings become text, never markup.
  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value !== undefined) element.setAttribute(name, value);
    }
    for (const child of children) {
      if (child !== null && child !== undefined) element.append(child instanceof Node ? child : clean(child));
    }
    return element;
  }
  const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
  const draw = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  const count = (n) => Math.round(n).toLocaleString("en-US");
  function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    let value = Math.abs(n);
    while (value >= 1024 && unit < units.length - 1) { value /= 1024; unit += 1; }
    const text = value >= 100 || unit === 0 ? value.toFixed(0) : value.toFixed(1);
    return `${n < 0 ? "-" : ""}${text} ${units[unit]}`;
  }
  // All only if it is all.
  const freed = (f) => f.freed / Math.max(f.allocated, 1);
  function share(part) {
    const percent = part * 100;
    return percent > 99 && percent < 100 ? "99 %" : `${percent.toFixed(0)} %`;
  }
  const rate = (n) => `${n >= 0 ? "+" : ""}${bytes(n)}/s`;
  function seconds(s) {
    if (s < 1e-3) return `${(s * 1e6).toFixed(0)} µs`;
    if (s < 1) return `${(s * 1e3).toFixed(0)} ms`;
    if (s < 120) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
    if (s < 7200) return `${(s / 60).toFixed(0)} min`;
    return `${(s / 3600).toFixed(1)} h`;
  }
  const hex = (n) => `0x${n.toString(16)}`;
  function label(frame) {
    const place = frame.symbol ? (frame.inlined ? frame.symbol : `${frame.symbol}+${hex(frame.offset)}`) : frame.address;
    return frame.module ? `${place} [${frame.module}]` : place;
  }
  const grows = (finding) => ["steady", "bursty", "ticks"].includes(finding.growth.shape);

  // Points as a path in a box of a width and a height; the lowest line is 0.
  function path(points, width, height) {
    const first = points[0][0];
    const span = Math.max(points[points.length - 1][0] - first, 1e-9);
    const most = Math.max(...points.map((point) => point[1]), 1);
    const at = ([x, y]) => `${(((x - first) / span) * width).toFixed(1)},${(height - (y / most) * height).toFixed(1)}`;
    const line = `M${points.map(at).join("L")}`;
    return { line, area: `${line}L${width},${height}L0,${height}Z`, most };
  }
  function spark(points) {
    if (!points || points.length < 2) return "";
    const { line } = path(points, 90, 18);
    return draw("svg", { class: "spark", viewBox: "0 -1 90 20", "aria-hidden": "true" }, draw("path", { class: "line", d: line }));
  }
  function growthChart(points, unit = bytes, what = "Surviving bytes") {
    if (!points || points.length < 2) return make("p", { class: "note" }, "too few ticks for a chart");
    const { line, area, most } = path(points, 400, 110);
    const last = points[points.length - 1];
    return draw("svg", { class: "chart", viewBox: "-2 -14 404 142", role: "img", "aria-label": `${what} over ${seconds(last[0])}, up to ${unit(most)}` },
      draw("path", { class: "area", d: area }), draw("path", { class: "line", d: line }),
      draw("text", { x: 0, y: -4 }, unit(most)), draw("text", { x: 0, y: 124 }, seconds(points[0][0])),
      draw("text", { x: 400, y: 124, "text-anchor": "end" }, `${seconds(last[0])}, ${unit(last[1])}`));
  }
  function lifetimeChart(classes) {
    if (!classes || classes.length === 0) return make("p", { class: "note" }, "none was freed");
    const most = Math.max(...classes.map((one) => one[1]));
    const step = 400 / classes.length;
    const bars = classes.map(([end, freed], index) => draw("rect", {
      class: "bar", x: (index * step).toFixed(1), width: Math.max(step - 2, 1).toFixed(1),
      y: (90 - (freed / most) * 88).toFixed(1), height: Math.max((freed / most) * 88, 1).toFixed(1),
    }, draw("title", {}, `${count(freed)} of the sample lived up to ${seconds(end / 1e6)}`)));
    return draw("svg", { class: "chart", viewBox: "-2 -2 404 112", role: "img", "aria-label": "Lifetimes of freed objects" }, ...bars,
      draw("text", { x: 0, y: 104 }, `up to ${seconds(classes[0][0] / 1e6)}`),
      draw("text", { x: 400, y: 104, "text-anchor": "end" }, `up to ${seconds(classes[classes.length - 1][0] / 1e6)}`));
  }

  // A table that is sorted by a click on a column's title. Columns: title, what they are sorted by, what they show.
  function table(id, columns, rows, sorted, changed, after = () => null, attributes = () => ({})) {
    const head = columns.map((column, index) => {
      const is = sorted.column === index;
      const sort = () => {
        sorted.descending = is ? !sorted.descending : column.number === true;
        sorted.column = index;
        changed();
      };
      return make("th", { class: column.number ? "number" : undefined, scope: "col", "aria-sort": is ? (sorted.descending ? "descending" : "ascending") : "none" },
        column.by ? make("button", { type: "button", click: sort }, column.title) : column.title);
    });
    const by = columns[sorted.column].by;
    const order = [...rows].sort((a, b) => {
      const [x, y] = [by(a), by(b)];
      const difference = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
      return sorted.descending ? -difference : difference;
    });
    const body = make("tbody");
    for (const row of order) {
      body.append(make("tr", attributes(row), ...columns.map((column) => make("td", { class: column.wide ? "wide" : column.number ? "number" : undefined }, column.show(row)))));
      const more = after(row);
      if (more) body.append(more);
    }
    get(id).replaceChildren(make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), body)));
    return order;
  }

  const state = { query: "", hidden: new Set(), open: new Set(), chosen: null, order: [] };
  const sorts = { findings: { column: 0, descending: false }, caches: { column: 2, descending: true }, modules: { column: 2, descending: true } };
  let report = data.report;
  const key = (finding) => `${label(finding.responsible)} ${finding.cache} ${finding.family} ${label(finding.call_site)}`;

  const VERDICTS = ["leak", "suspect", "plateau", "cache", "churn", "unknown"];
  const rank = (verdict) => (VERDICTS.includes(verdict) ? VERDICTS.indexOf(verdict) : VERDICTS.length);
  const verdict = (finding) => make("span", { class: `verdict ${VERDICTS.includes(finding.verdict) ? finding.verdict : ""}` }, finding.known ? "known" : finding.verdict);
  const FINDINGS = [
    { title: "#", number: true, by: (f) => f.rank, show: (f) => count(f.rank) },
    { title: "Verdict", by: (f) => rank(f.verdict), show: verdict },
    { title: "Where", wide: true, by: (f) => label(f.responsible), show: (f) => make("code", {}, label(f.responsible)) },
    { title: "Cache", by: (f) => f.cache, show: (f) => f.cache },
    { title: "Live", number: true, by: (f) => f.live.objects, show: (f) => count(f.live.objects) },
    { title: "Bytes", number: true, by: (f) => f.live.bytes, show: (f) => bytes(f.live.bytes) },
    { title: "Growth", number: true, by: (f) => (grows(f) ? f.growth.bytes_per_s : 0), show: (f) => (grows(f) ? rate(f.growth.bytes_per_s) : f.growth.shape) },
    { title: "Freed", number: true, by: freed, show: (f) => share(freed(f)) },
    { title: "Oldest", number: true, by: (f) => f.survivors.oldest_s, show: (f) => seconds(f.survivors.oldest_s) },
    { title: "Survivors over time", show: (f) => spark(f.growth.points) },
  ];

  const list = (items) => make("ul", {}, ...items.map((item) => make("li", {}, item)));
  function part(title, ...content) {
    return make("div", {}, make("h3", {}, title), ...content);
  }
  function details(finding) {
    const place = (frame) => (frame.file ? `${label(frame)}  ${frame.file}:${frame.line ?? "?"}` : label(frame));
    const stacks = finding.stacks.slice(0, 3).map((stack) => part(`Stack of ${count(stack.objects)} objects`, make("ol", { class: "stack" }, ...stack.frames.map((frame) => make("li", {}, place(frame))))));
    const objects = finding.objects.slice(0, 12).map((object) => make("li", {}, `${object.address}  ${count(object.size)} B  ${seconds(object.age_s)}${object.reach ? `  ${object.reach}` : ""}`));
    const parts = [
      part("Why", list(finding.evidence)),
      finding.open.length ? part("But", list(finding.open)) : null,
      finding.settle.length ? part("What would settle it", list(finding.settle)) : null,
      part("Surviving bytes", growthChart(finding.growth.points)),
      finding.recorded ? part("Live objects over the recording", growthChart(finding.recorded, count, "Live objects")) : null,
      part("Lifetimes of what was freed", lifetimeChart(finding.lifetime.classes)),
      ...stacks,
      finding.freed_by.length ? part("Normally freed by", list(finding.freed_by.map((by) => `${by.caller} ${by.percent.toFixed(0)} %`))) : null,
      finding.tasks.length ? part("Allocated by", list(finding.tasks.slice(0, 6).map((task) => `${task.comm} (${task.pid}) ${count(task.objects)}`))) : null,
      objects.length ? part(`Objects, ${objects.length} of ${count(finding.live.objects)}`, make("ol", { class: "stack" }, ...objects)) : null,
    ];
    return make("tr", { class: "details" }, make("td", { colspan: FINDINGS.length }, make("div", { class: "columns" }, ...parts)));
  }

  function matches(finding) {
    if (state.hidden.has(finding.verdict)) return false;
    if (state.query === "") return true;
    const frames = finding.stacks.flatMap((stack) => stack.frames);
    const text = [finding.verdict, finding.cache, finding.module, finding.family, label(finding.responsible), label(finding.call_site), ...frames.map(label), ...finding.tasks.map((task) => task.comm)];
    const all = text.join("\n").toLowerCase();
    return state.query.toLowerCase().split(/\s+/).every((word) => all.includes(word));
  }
  function toggle(finding) {
    const id = key(finding);
    if (!state.open.delete(id)) state.open.add(id);
    state.chosen = id;
    findings();
  }
  function findings() {
    const shown = report.findings.filter(matches);
    state.order = table("findings", FINDINGS, shown, sorts.findings, findings,
      (finding) => (state.open.has(key(finding)) ? details(finding) : null),
      (finding) => ({ class: `finding${state.chosen === key(finding) ? " chosen" : ""}`, "aria-expanded": String(state.open.has(key(finding))), click: () => toggle(finding) }));
    get("shown").textContent = `${shown.length} of ${report.findings.length}`;
    const present = VERDICTS.filter((name) => report.findings.some((finding) => finding.verdict === name));
    get("verdicts").replaceChildren(...present.map((name) => make("button", {
      type: "button", "aria-pressed": String(!state.hidden.has(name)),
      click: () => { if (!state.hidden.delete(name)) state.hidden.add(name); findings(); },
    }, name)));
  }
  function caches() {
    const grown = (cache) => (cache.slabinfo ? cache.slabinfo.after - cache.slabinfo.before : 0);
    table("caches", [
      { title: "Cache", by: (c) => c.name, show: (c) => c.name },
      { title: "Object", number: true, by: (c) => c.object_size, show: (c) => bytes(c.object_size) },
      { title: "Traced", number: true, by: (c) => c.traced.net, show: (c) => count(c.traced.net) },
      { title: "In /proc/slabinfo", number: true, by: grown, show: (c) => (c.slabinfo ? count(grown(c)) : "-") },
      { title: "Both", by: (c) => c.agreement, show: (c) => c.agreement },
      { title: "Merged with", wide: true, by: (c) => c.aliases.join(", "), show: (c) => c.aliases.slice(0, 6).join(", ") },
    ], report.caches.slice(0, 500), sorts.caches, caches);
  }
  function modules() {
    table("modules", [
      { title: "Module", by: (m) => m.name, show: (m) => m.name },
      { title: "Sites", number: true, by: (m) => m.findings, show: (m) => count(m.findings) },
      { title: "Surviving", number: true, by: (m) => m.survivor_bytes, show: (m) => bytes(m.survivor_bytes) },
      { title: "Live", number: true, by: (m) => m.live_bytes, show: (m) => bytes(m.live_bytes) },
      { title: "Growth", number: true, by: (m) => m.bytes_per_s, show: (m) => rate(m.bytes_per_s) },
    ], report.modules, sorts.modules, modules);
  }
  function coverage() {
    const hooks = report.coverage.hooks;
    const refused = hooks.filter((hook) => !hook.attached);
    const lost = Object.entries(report.coverage.lost).filter(([, number]) => number > 0);
    const cost = report.overhead;
    const ofTicks = report.recorded && report.recorded.report_s === null;
    get("coverage").replaceChildren(make("div", { class: "columns" },
      part(`${hooks.length - refused.length} of ${hooks.length} hooks`, list(refused.map((hook) => `${hook.name}: ${hook.error ?? "not attached"}`))),
      part("Not seen", list(report.coverage.blind_spots.map((spot) => `${spot.path}: ${spot.effect}`))),
      part("Lost", list(lost.length ? lost.map(([name, number]) => `${name.replaceAll("_", " ")}: ${count(number)}`) : [ofTicks ? "not known" : "nothing"])),
      part("Cost", list(ofTicks ? ["not known"] : [
        cost.cpu_percent === null ? "programs in the kernel: not measured" : `programs in the kernel: ${cost.cpu_percent.toFixed(2)} % of all CPUs`,
        `beside them ${cost.user_space_cpu_s.toFixed(2)} s of CPU time in ${seconds(report.window.duration_s)}`,
        `tables of ${bytes(cost.tables_kb * 1024)} for ${count(cost.max_objects)} objects`,
        ...(report.recorded ? [`recording of ${count(report.recorded.ticks)} ticks, ${bytes(report.recorded.bytes)}${report.recorded.damage ? `; not readable: ${report.recorded.damage}` : ""}`] : []),
        report.coverage.sampling > 1 ? `1 in ${count(report.coverage.sampling)} addresses was tracked` : "every address was tracked",
      ])),
      report.recorded ? part("Memory available over the recording", growthChart(report.recorded.available_kb.map(([at, kb]) => [at, kb * 1024]), bytes, "Memory available")) : null));
  }
  function flame(svg) {
    if (!svg) return;
    // In a frame of its own: its script and its names are not this page's.
    const frame = make("iframe", { title: "Flame graph of live bytes by stack", sandbox: "allow-scripts" });
    const height = /height="(\d+)"/.exec(svg);
    frame.style.height = `${Math.min(Number(height ? height[1] : 400) + 20, 900)}px`;
    frame.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
    get("flame").replaceChildren(frame);
  }
  function all() {
    const machine = report.machine;
    get("machine").textContent = clean(`${report.kernel}, ${machine.architecture}, ${machine.cpus} CPUs, ${bytes(machine.memory_kb * 1024)}; traced for ${seconds(report.window.duration_s)} from ${report.window.started}; leaktrace ${report.tool_version}`);
    const headline = get("headline");
    headline.className = report.headline.verdict;
    headline.replaceChildren(make("strong", {}, report.headline.verdict === "none" ? "ok" : report.headline.verdict), clean(report.headline.text));
    get("filters").textContent = clean(report.filters?.text ?? "");
    document.title = `leaktrace: ${clean(report.headline.verdict)}, ${clean(report.kernel)}`;
    findings();
    caches();
    modules();
    coverage();
  }

  get("search").addEventListener("input", (event) => { state.query = event.target.value.trim(); findings(); });
  function theme() {
    const root = document.documentElement;
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
  }
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  get("theme").addEventListener("click", theme);
  get("help-open").addEventListener("click", () => get("help").showModal());
  function move(step) {
    if (state.order.length === 0) return;
    const at = state.order.findIndex((finding) => key(finding) === state.chosen);
    const next = Math.min(Math.max(at + step, 0), state.order.length - 1);
    state.chosen = key(state.order[next]);
    findings();
    document.querySelector("tr.chosen").scrollIntoView({ block: "nearest" });
  }
  function every() {
    const ids = state.order.map(key);
    if (ids.every((id) => state.open.has(id))) ids.forEach((id) => state.open.delete(id));
    else ids.forEach((id) => state.open.add(id));
    findings();
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || get("help").open) return;
    const search = get("search");
    if (document.activeElement === search) {
      if (event.key === "Escape") { search.value = ""; state.query = ""; search.blur(); findings(); }
      if (event.key === "Enter") { search.blur(); move(1); event.preventDefault(); }
      return;
    }
    const button = document.activeElement instanceof HTMLButtonElement;
    const chosen = () => state.order.find((finding) => key(finding) === state.chosen);
    const keys = {
      "/": () => search.focus(), j: () => move(1), k: () => move(-1), e: every, t: theme, "?": () => get("help").showModal(),
      Enter: () => { if (!button && chosen()) toggle(chosen()); },
    };
    if (keys[event.key]) {
      keys[event.key]();
      if (event.key !== "Enter" || !button) event.preventDefault();
    }
  });
  // On paper nothing can be opened.
  addEventListener("beforeprint", () => {
    report.findings.filter((finding) => rank(finding.verdict) < 2).forEach((finding) => state.open.add(key(finding)));
    findings();
  });

  // An agent's page asks for the next report; what is open, sorted and searched stays.
  async function refresh() {
    try {
      const answer = await fetch("report.json", { cache: "no-store" });
      if (answer.ok) {
        report = await answer.json();
        all();
        get("stale").textContent = "";
      }
    } catch {
      get("stale").textContent = "The agent does not answer: this is how things stood before.";
    }
  }
  if (data.live) {
    setInterval(refresh, 5000);
    get("flame-refresh").hidden = false;
    get("flame-refresh").addEventListener("click", async () => {
      const answer = await fetch("flame.svg", { cache: "no-store" });
      if (answer.ok) flame(await answer.text());
    });
  }

  for (const finding of report.findings.slice(0, 1)) state.open.add(key(finding));
  all();
  flame(data.flame);
})();
