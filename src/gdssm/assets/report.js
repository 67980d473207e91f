// The interactive view of a report: every .panel holds its data and is drawn at its last position already (interactive.py).
"use strict";
(() => {
  const SHADES = 101;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // heatmaps.py: Heatmap.shade, is_dark, marks
  const shade = (map, value) => Math.floor(Math.min(Math.max((value - map.low) / (map.high - map.low), 0), 1) * (SHADES - 1) + 0.5);
  const isDark = (colour) => {
    const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140;
  };
  const marks = (map, values, colours) => {
    const paths = { dark: "", light: "", beyond: "" };
    values.forEach((value, i) => {
      if (value === null) return;
      const row = Math.floor(i / map.columns), column = i % map.columns;
      if (value > map.high || value < map.low) paths.beyond += `M${column}.2 ${row}.2l.6 .6m0 -.6l-.6 .6`;
      else if (value < 0 && shade(map, value) < Math.floor(SHADES / 2)) paths[isDark(colours[shade(map, value)]) ? "light" : "dark"] += `M${column}.3 ${row}.5h.4`;
    });
    return paths;
  };
  const frame = (frames, position) => frames[frames.length > 1 ? position : 0];

  const drawGrid = (group, data, position) => {
    const map = data.maps[group.dataset.map], colours = data.palettes[map.palette], values = frame(map.frames, position);
    group.querySelectorAll("rect:not(.cursor)").forEach((cell, i) => {
      cell.setAttribute("fill", values[i] === null ? "none" : colours[shade(map, values[i])]);
    });
    if (map.written) {
      group.querySelectorAll("text").forEach((text, i) => {
        text.textContent = frame(map.written, position)[i];
        text.setAttribute("class", isDark(colours[shade(map, values[i])]) ? "light" : "dark");
      });
    } else {
      for (const [name, path] of Object.entries(marks(map, values, colours))) {
        group.querySelector(`path.${name}`).setAttribute("d", path);
      }
    }
  };

  const start = (panel) => {
    const data = JSON.parse(panel.querySelector("script").textContent);
    const slider = panel.querySelector("input"), button = panel.querySelector("button");
    const readout = panel.querySelector(".cell"), marker = panel.querySelector("[data-marker]");
    const last = data.at.length - 1;
    let chosen = null; // the cell that is read: {group, row, column}
    let timer = 0;

    const readCell = () => {
      panel.querySelectorAll(".cursor").forEach((cursor) => cursor.remove());
      if (!chosen) return;
      const { group, row, column } = chosen;
      const values = group.maps.map((key) => {
        const map = data.maps[key], value = frame(map.frames, Number(slider.value))[row * map.columns + column];
        return `${map.name} ${value === null ? "none yet" : value}`;
      });
      readout.textContent = `${[group.rows[row], group.columns[column]].filter(Boolean).join(", ")}: ${values.join("; ")}`;
      for (const key of group.maps) {
        panel.querySelectorAll(`g[data-map="${key}"]`).forEach((g) => {
          const cursor = document.createElementNS("http://www.w3.org/2000/svg", "rect");
          for (const [name, value] of Object.entries({ class: "cursor", x: column, y: row, width: 1, height: 1 })) {
            cursor.setAttribute(name, value);
          }
          g.append(cursor);
        });
      }
    };

    const show = (position) => {
      slider.value = position;
      slider.setAttribute("aria-valuetext", data.texts.position[position]);
      panel.querySelectorAll("[data-text]").forEach((element) => {
        element.textContent = data.texts[element.dataset.text][position];
      });
      panel.querySelectorAll("g[data-map]").forEach((group) => drawGrid(group, data, position));
      if (marker) {
        marker.setAttribute("cx", data.marker[position][0]);
        marker.setAttribute("cy", data.marker[position][1]);
      }
      readCell();
    };

    // The address keeps the position, so that a link shows what its sender saw: #example=3&step=120
    const remember = () => {
      const named = new URLSearchParams(location.hash.slice(1).includes("=") ? location.hash.slice(1) : "");
      named.set(data.key, data.at[Number(slider.value)]);
      history.replaceState(null, "", `#${named}`);
    };
    const recall = () => {
      const text = new URLSearchParams(location.hash.slice(1)).get(data.key);
      if (text === null || text.trim() === "" || !Number.isFinite(Number(text))) return;
      const distance = data.at.map((at) => Math.abs(at - Number(text)));
      stop();
      show(distance.indexOf(Math.min(...distance)));
    };

    const stop = () => {
      clearInterval(timer);
      timer = 0;
      button.textContent = still ? "Next" : "Play";
    };
    const next = () => show(Number(slider.value) === last ? 0 : Number(slider.value) + 1);
    button.addEventListener("click", () => {
      if (still) { // nothing moves by itself where the reader asks for less motion
        next();
        remember();
      } else if (timer) {
        stop();
        remember();
      } else {
        next();
        button.textContent = "Pause";
        timer = setInterval(() => {
          if (Number(slider.value) === last) stop();
          else next();
          if (!timer) remember();
        }, Math.max(150, Math.min(800, 9000 / data.at.length)));
      }
    });
    slider.addEventListener("input", () => {
      stop();
      show(Number(slider.value));
    });
    slider.addEventListener("change", remember);
    addEventListener("hashchange", recall);

    const choose = (key, row, column) => {
      const group = data.groups.find((one) => one.maps.includes(key));
      const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);
      chosen = { group, row: clamp(row, group.rows.length), column: clamp(column, group.columns.length) };
      readCell();
    };
    panel.querySelectorAll("svg.map").forEach((svg) => {
      const keys = [...svg.querySelectorAll("g[data-map]")].map((group) => group.dataset.map);
      svg.setAttribute("tabindex", "0");
      const point = (event) => {
        const group = event.target.closest("rect:not(.cursor)")?.closest("g[data-map]");
        if (group) choose(group.dataset.map, Number(event.target.getAttribute("y")), Number(event.target.getAttribute("x")));
      };
      svg.addEventListener("pointermove", point);
      svg.addEventListener("pointerdown", point); // a tap
      svg.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!move) return;
        event.preventDefault();
        const main = keys[keys.length - 1], here = chosen && chosen.group.maps.includes(main);
        choose(main, here ? chosen.row + move[0] : 0, here ? chosen.column + move[1] : 0);
      });
    });

    panel.querySelector(".controls").hidden = false;
    readout.textContent = "Point at or tap a cell, or use Tab and the arrow keys on a matrix, to read its values.";
    stop();
    show(last);
    recall();
  };

  document.querySelectorAll(".panel").forEach(start);
})();
