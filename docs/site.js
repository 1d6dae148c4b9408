/* Tables that sort and filter. A header says how: data-filter="select" makes a menu, and the search box takes words of
   a row, or key:value for one column; data-v of an entry is what is compared, several values apart by "|".
   #q=word&room=name in the address sets filters. */
(() => {
  const own = c => c.dataset.v ?? c.textContent.trim();
  const rank = c => c.querySelector('.ql-order')?.textContent ?? own(c);
  const order = (a, b) => {
    const x = Number(a), y = Number(b), numbers = a !== '' && b !== '' && !isNaN(x) && !isNaN(y);
    return numbers ? x - y : a.localeCompare(b, 'en', {numeric: true});
  };
  const make = (tag, props, ...kids) => {
    const e = Object.assign(document.createElement(tag), props); e.append(...kids); return e;
  };

  function setup(table) {
    const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
    const bar = make('div', {className: 'ql-bar'}), count = make('output', {className: 'ql-count'}), picks = {};
    const search = make('input', {type: 'search', placeholder: 'search', ariaLabel: 'search ' + table.dataset.note});
    bar.append(search);
    heads.forEach((h, k) => {
      if (!h.dataset.filter?.endsWith('select')) return;
      const values = [...new Set(rows.flatMap(r => own(r.cells[k]).split('|')))].filter(Boolean).sort(order);
      if (values.length < 2) return;
      const any = make('option', {value: '', textContent: 'any ' + h.textContent});
      const pick = make('select', {ariaLabel: h.textContent}, any);
      values.forEach(v => pick.append(make('option', {value: v, textContent: v})));
      pick.addEventListener('change', apply); picks[h.dataset.key] = [k, pick]; bar.append(pick);
    });
    bar.append(count);
    table.parentElement.before(bar);
    const words = rows.map(r => r.textContent.toLowerCase());
    const has = (r, i, w) => { // key:value asks one column, a word any
      const k = heads.findIndex(h => w.startsWith(h.dataset.key + ':'));
      return k < 0 ? words[i].includes(w) : own(r.cells[k]).toLowerCase() === w.slice(w.indexOf(':') + 1);
    };

    function apply() {
      const want = search.value.toLowerCase().split(/\s+/).filter(Boolean); let n = 0;
      const chosen = Object.values(picks).filter(([, p]) => p.value);
      rows.forEach((r, i) => {
        const ok = want.every(w => has(r, i, w)) &&
          chosen.every(([k, p]) => own(r.cells[k]).split('|').includes(p.value));
        r.hidden = !ok; n += ok;
      });
      count.textContent = `${n} of ${rows.length} ${table.dataset.note}`;
    }
    function read() {
      const asked = new URLSearchParams(location.hash.slice(1));
      if (![...asked.keys()].some(k => k === 'q' || k in picks)) return;
      search.value = asked.get('q') ?? '';
      for (const [key, [, pick]] of Object.entries(picks)) pick.value = asked.get(key) ?? '';
      apply();
    }
    heads.forEach((h, k) => {
      const b = make('button', {type: 'button', textContent: h.textContent});
      h.replaceChildren(b); h.ariaSort = 'none';
      b.addEventListener('click', () => {
        const down = h.ariaSort === 'ascending';
        heads.forEach(o => o.ariaSort = 'none'); h.ariaSort = down ? 'descending' : 'ascending';
        const keyed = rows.map((r, i) => [rank(r.cells[k]), i, r]), way = down ? -1 : 1;
        keyed.sort((a, b) => way * order(a[0], b[0]) || a[1] - b[1]);
        body.append(...keyed.map(s => s[2]));
      });
    });
    search.addEventListener('input', apply); addEventListener('hashchange', read);
    apply(); read();
  }

  function mark() { // the exported lines that an address names
    document.querySelectorAll('.ql-here').forEach(e => e.classList.remove('ql-here'));
    const m = location.hash.match(/^#L-(\d+)$/); if (!m) return;
    for (let n = +m[1], e; (e = document.getElementById('L-' + n)); n++) {
      if (n > +m[1] && e.dataset.cell) break;
      e.classList.add('ql-here');
    }
  }

  document.addEventListener('DOMContentLoaded', () => {
    document.querySelectorAll('table.ql').forEach(setup);
    mark(); addEventListener('hashchange', mark);
  });
})();
