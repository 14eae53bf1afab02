(() => {
  const cohorts = [...document.querySelectorAll(".cohort")], choice = document.getElementById("cohort");
  const MOST = Number(document.querySelector("[data-most]").dataset.most);
  const names = ["family", "size", "tap", "adapter", "decoder"];
  const shown = () => cohorts.find((each) => !each.hidden);
  const here = () => tables.filter((table) => shown().contains(table));
  const form = () => shown().querySelector("form");
  document.querySelectorAll("form.controls").forEach((each) => { each.hidden = false; });

  // What is shown is written in the address, so that it can be passed on.
  const write = () => {
    const state = new URLSearchParams();
    if (choice.selectedIndex > 0) state.set("cohort", choice.value);
    for (const field of form().elements) if (field.name && field.value) state.set(field.name, field.value);
    for (const table of shown().querySelectorAll("table[data-sorted]")) state.append("sort", table.dataset.sorted);
    history.replaceState(null, "", state.size ? `#${state}` : location.pathname + location.search);
  };

  // Rows wait outside of the page until they are wanted: a browser lays 100 out in a tenth of the time of 2,000.
  const tables = [...document.querySelectorAll("table.board")];
  const rowsById = new Map();
  for (const table of tables) {
    table.groups = [...table.tBodies].map((body) => {
      const rows = [...body.rows], title = rows[0]?.className === "group" ? rows.shift() : null;
      for (const each of rows) {
        each.classList.remove("beyond");
        if (each.id) rowsById.set(each.id, each);
        each.values = [...each.cells].map((cell) => {
          const v = cell.dataset.v;
          return v === undefined ? cell.textContent : v === "" ? null : Number(v);
        });
      }
      return { body, title, rows };
    });
    table.most = MOST;
  }
  const lay = (table) => {
    let waiting = 0;
    for (const { body, title, rows } of table.groups) {
      const fitting = rows.filter((each) => !each.out), laid = fitting.slice(0, table.most);
      waiting += fitting.length - laid.length;
      body.replaceChildren(...(title && laid.length ? [title] : []), ...laid.flatMap((each) => (each.detail ? [each, each.detail] : [each])));
    }
    const button = table.parentElement.nextElementSibling?.querySelector("[data-all]");
    if (!button) return;
    button.hidden = !waiting;
    button.textContent = `show the other ${waiting.toLocaleString("en")} rows`;
  };

  const filter = () => {
    const fields = form().elements, wanted = names.map((name) => [name, fields[name].value]).filter(([, value]) => value);
    const words = fields.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0, all = 0;
    for (const table of here()) {
      for (const { rows } of table.groups) for (const each of rows) {
        const facts = each.dataset, control = facts.kind === "control";
        // An experiment without adapter or decoder belongs to every one; controls stand beside whatever is left.
        const fits = wanted.every(([name, value]) => {
          const free = name === "adapter" || name === "decoder" ? !facts[name] : control || facts[name] === undefined;
          return free || facts[name] === value;
        });
        const text = words.length && !control ? `${each.values[0]} ${each.values[1]}`.toLowerCase() : "";
        each.out = !fits || (!control && !words.every((word) => text.includes(word)));
        if (each.id && !control) { all += 1; seen += each.out ? 0 : 1; }
      }
      lay(table);
    }
    shown().querySelector("[role=status]").textContent = `${seen} of ${all} rows`;
  };

  const compare = (a, b) => (typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0);
  const sort = (table, column, direction) => {
    const turn = direction === "descending" ? -1 : 1;
    for (const { rows } of table.groups) {
      // What is absent stays last, whichever way.
      rows.sort(({ values: { [column]: a } }, { values: { [column]: b } }) =>
        (a === null || b === null ? (a === null) - (b === null) : turn * compare(a, b)));
    }
    [...table.tHead.rows[0].cells].forEach((head, index) => {
      if (head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", index === column ? direction : "none");
    });
    lay(table);
  };

  const element = (tag, text, ...children) => {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    made.append(...children);
    return made;
  };
  const number = (x) => (x === null || x === undefined ? "–" : Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1)
    : x.toFixed(3).replace(/^(-?)0\./, Math.abs(x) < 1 ? "$1." : "$&"));
  const estimate = (each) => (each && each.value !== null ? `${number(each.value)} [${number(each.low)}, ${number(each.high)}]` : "–");
  const table = (title, heads, rows) => {
    const line = (tag, cells) => element("tr", "", ...cells.map((text, index) => {
      const cell = element(tag === "th" || index === 0 ? "th" : "td", text);
      if (cell.tagName === "TH") cell.scope = tag === "th" ? "col" : "row";
      return cell;
    }));
    return element("table", "", element("caption", title), element("thead", "", line("th", heads)),
      element("tbody", "", ...rows.map((cells) => line("td", cells))));
  };
  const describe = (record) => {
    const parts = [], copy = element("button", "copy");
    copy.type = "button"; copy.dataset.copy = record.command;
    parts.push(element("pre", "", element("code", record.command)), copy);
    parts.push(table("What the verdict rests on", ["metric", "value", "best floor", "ceiling", "skill", "verdict"],
      record.metrics.map((m) => [m.metric, estimate(m), `${number(m.floor_value)} ${m.floor ?? ""}`, `${number(m.ceiling_value)} ${m.ceiling ?? ""}`,
        number(m.skill), m.verdict ? `${m.verdict}: ${m.reason}${m.clips_needed ? `; about ${m.clips_needed} clips would decide` : ""}` : "–"])));
    if (record.reported.length) parts.push(table("Reported beside it, deciding nothing", ["metric", "value"], record.reported.map((m) => [m.metric, estimate(m)])));
    const taps = Object.entries(record.taps), metrics = record.metrics.map((m) => m.metric);
    if (taps.length) parts.push(table("Over taps, in order of depth", ["tap", ...metrics], taps.map(([tap, found]) => [tap, ...metrics.map((name) => estimate(found[name]))])));
    const cost = record.cost, facts = [`cell ${record.cell}`, `${record.readout} at ${record.tap}`, record.precision];
    if (cost) facts.push(`feature pass ${number(cost.feature_seconds)} s, ${number(cost.frames_per_second)} frames/s`, `experiment ${number(cost.wall_seconds)} s`,
      `${cost.encoder_parameters?.toLocaleString("en") ?? "unknown"} encoder parameters`, `${cost.trainable_parameters.toLocaleString("en")} trained values`, `peak ${number(cost.peak_memory_bytes / 2 ** 30)} GiB`);
    if (record.surrogate) facts.push(`surrogate decoder: ${record.surrogate}`);
    if (record.commit) facts.push(`commit ${record.commit.slice(0, 12)}${record.dirty ? " with changes" : ""}`);
    const told = element("p", facts.join(" · ")); told.className = "facts quiet";
    parts.push(told);
    return parts;
  };
  const open = (line, wanted) => {
    const button = line.querySelector("button[data-row]");
    if (wanted && !line.detail) {
      const holder = shown().querySelector(".records");
      holder.records ??= JSON.parse(holder.textContent);
      const cell = element("td", "", ...describe(holder.records[button.dataset.row]));
      cell.colSpan = line.cells.length;
      line.detail = element("tr", "", cell);
      line.detail.className = "detail";
      line.after(line.detail);
    } else if (!wanted && line.detail) { line.detail.remove(); line.detail = null; }
    button.setAttribute("aria-expanded", String(wanted));
  };

  const show = (cohort) => {
    cohorts.forEach((each) => { each.hidden = each !== cohort; });
    choice.value = cohort.dataset.cohort;
  };
  const read = () => {
    const fragment = decodeURIComponent(location.hash.slice(1));
    const target = rowsById.get(fragment) ?? document.getElementById(fragment);
    document.querySelectorAll("tr.chosen").forEach((each) => each.classList.remove("chosen"));
    if (target) {
      const table = tables.find((each) => each.groups.some(({ rows }) => rows.includes(target)));
      const home = (table ?? target).closest(".cohort");
      if (home) show(home);
      filter();
      if (table) {
        if (target.out) { form().reset(); filter(); }
        if (!target.isConnected) { table.most = Infinity; lay(table); }
        target.classList.add("chosen");
        open(target, true);
      }
      target.scrollIntoView({ block: "center" });
      return;
    }
    const state = new URLSearchParams(location.hash.slice(1));
    show(cohorts.find((each) => each.dataset.cohort === state.get("cohort")) ?? cohorts[0]);
    for (const field of form().elements) if (field.name) field.value = state.get(field.name) ?? "";
    for (const field of form().elements) if (field.name && field.selectedIndex === -1) field.value = "";
    for (const item of state.getAll("sort")) {
      const [sheet, column, direction] = item.split("~");
      const found = [...shown().querySelectorAll("table[data-sheet]")].find((each) => each.dataset.sheet === sheet);
      if (!found?.tHead.rows[0].cells[column]?.hasAttribute("aria-sort") || !["ascending", "descending"].includes(direction)) continue;
      found.dataset.sorted = item;
      sort(found, Number(column), direction);
    }
    filter();
  };

  choice.addEventListener("change", () => { show(cohorts[choice.selectedIndex]); filter(); write(); });
  document.addEventListener("input", (event) => { if (event.target.closest(".cohort form")) { filter(); write(); } });
  document.addEventListener("reset", () => setTimeout(() => { filter(); write(); }));
  document.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.column !== undefined) {
      const head = button.closest("th"), found = button.closest("table"), now = head.getAttribute("aria-sort");
      const direction = now === "none" ? button.dataset.first : now === "ascending" ? "descending" : "ascending";
      sort(found, Number(button.dataset.column), direction);
      found.dataset.sorted = `${found.dataset.sheet}~${button.dataset.column}~${direction}`;
      write();
    } else if (button.dataset.all !== undefined) {
      const found = button.closest("p").previousElementSibling.querySelector("table");
      found.most = Infinity;
      lay(found);
    } else if (button.dataset.row) open(button.closest("tr"), button.getAttribute("aria-expanded") !== "true");
  });
  addEventListener("beforeprint", () => { for (const table of here()) { table.most = Infinity; lay(table); } });
  addEventListener("hashchange", read);
  read();
})();
