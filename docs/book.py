"Notebooks as Sphinx reads them: directives become tags, equations stand alone, cells lead to code."
import ast, html, json, re
from modules import defined

DIRECTIVE = re.compile(r'^#\|\s*([\w-]+)\s*:?\s*(.*?)\s*$')
NOTES = dict(slow='takes minutes; run on request', gpu='needs a GPU; run on request', eval='shown, not run')

def directives(source): # those at its top, and the rest
    lines, found = source.splitlines(), {}
    while lines and (m:=DIRECTIVE.match(lines[0])): found[m[1]] = m[2].strip('"\''); lines.pop(0)
    return found, '\n'.join(lines).strip('\n')

# equations

_FENCE = re.compile(r'(^[ \t]*(?:```|~~~).*?^[ \t]*(?:```|~~~)[ \t]*$)', re.M|re.S)
_DISPLAY = re.compile(r'[ \t]*(?<!\\)\$\$(.+?)\$\$([.,;:]?)[ \t]*', re.S)

def alone(text): # display equations with an empty line before and after, outside code
    def apart(m):
        body = m[1].strip()+m[2]
        return f'\n\n$$\n{body}\n$$\n\n'
    def line(l): return _DISPLAY.sub(lambda m: f' ${m[1].strip()}${m[2]} ', l) if l.lstrip()[:1] in ('|','>') else l
    parts = _FENCE.split(text)
    for k in range(0, len(parts), 2):
        part = '\n'.join(map(line, parts[k].split('\n')))
        parts[k] = re.sub(r'\n{3,}', '\n\n', _DISPLAY.sub(apart, part))
    return ''.join(parts).strip('\n')

# names and files

_CODE = re.compile(r'(?<!`)`([A-Za-z_][\w.]*)`(?!`)')
_SKIPPED = re.compile(r'(\$\$.*?\$\$|```.*?```|^#.*?$|\[[^\]]*\]\([^)]*\)|\$[^$\n]+\$)', re.M|re.S)

def linked(text, url): # `name` leads to its documentation; `url` says where, or nothing
    def one(m): return f'<a href="{u}"><code>{m[1]}</code></a>' if (u:=url(m[1])) else m[0]
    parts = _SKIPPED.split(text)
    return ''.join(p if k%2 else _CODE.sub(one, p) for k,p in enumerate(parts))

def outgoing(text, known): # links to files of the checkout become links of the site; others lose their link
    def one(m):
        label, to = m[1], m[2]
        if re.match(r'https?:|#', to): return m[0]
        return f'[{label}]({known[to]})' if to in known else label
    return re.sub(r'(?<!!)\[([^\]]*)\]\(([^)\s]+)\)', one, text)

# cells

def bound(source): # public and private names that a cell of code binds
    try: return [n for n,_ in defined(ast.parse(source))]
    except SyntaxError: return []

def imports_only(source): # or magics
    lines = [l for l in source.splitlines() if l.strip() and not l.startswith('%')]
    try: body = ast.parse('\n'.join(lines)).body
    except SyntaxError: return False
    calls = [n for n in body if not isinstance(n, (ast.Import,ast.ImportFrom))]
    return len(calls)<len(body) and all('set_matplotlib_formats' in ast.unparse(n) for n in calls)

def _steps(text): # 'steps 1 and 3, eq. 4' -> {1, 3}
    return {int(n) for m in re.finditer(r'[Ss]teps? ([\d, and]+)', text) for n in re.findall(r'\d+', m[1])}

def credits(cells): # step -> names of functions, from the table of the references
    out = {}
    for _,kind,source in cells:
        for l in source.splitlines() if kind=='markdown' and re.search(r'^\| *equation', source, re.M) else ():
            parts = l.split('|')
            for s in _steps(parts[1]) if len(parts)>3 else (): out.setdefault(s, []).extend(_CODE.findall(parts[2]))
    return out

def code_of(cells): # index of a cell with an equation -> ids of exported cells that compute it
    owner = {n:i for i,kind,s in cells if kind=='exported' for n in bound(s)}
    rows, step, out = credits(cells), 0, {}
    for k,(_,kind,source) in enumerate(cells):
        if kind!='markdown': continue
        if m:=re.findall(r'^#+ (.*)', source, re.M): step = min(_steps(m[-1]), default=0)
        if '$$' not in source: continue
        names = [*rows.get(step,()), *_CODE.findall(source)]
        out[k] = list(dict.fromkeys([*_following(cells,k), *(owner[n] for n in names if n in owner)]))
        if not out[k]: out[k] = [i for i,kind,s in cells[k:] if kind=='exported' and bound(s)][:1]
    return out

def _following(cells, k): # exported cells below, as far as the next heading or equation
    for i,kind,source in cells[k+1:]:
        if kind=='markdown' and ('$$' in source or source.startswith('#')): return
        if kind=='exported' and bound(source): yield i

# the whole notebook

def raw(text): return f'```{{raw}} html\n{text}\n```'

def _marked(c): # id, kind, source of a cell, for `code_of`
    found, source = directives(''.join(c['source']))
    code = c['cell_type']=='code'
    return c['id'], ('exported' if 'export' in found else 'code') if code else 'markdown', source

def _span(module, cell): # where a cell went, and how it is said
    a, b = module.cells[cell]
    return a, f'lines {a} to {b}' if b>a else f'line {a}'

class Book:
    "A notebook, the module that it exports, and how names are found"
    def __init__(self, path, module, url, facts=''):
        self.path, self.module, self.url, self.facts = path, module, url, facts
        self.cells = json.loads(path.read_text('utf8'))['cells']
        self.up = '../'*(len(path.parts)-path.parts.index('nbs')-1)

    def to(self, cell, text=''): # a link to the lines that a cell became
        line, said = _span(self.module, cell)
        return f'<a href="{self.up}{self.module.page}.html#L-{line}">{text or said}</a>'

    def export_note(self, cell): # above the code
        where = f'quantlab/{self.module.name.replace(".","/")}.py'
        said = self.to(cell, f'{where}, {_span(self.module,cell)[1]}')
        return raw(f'<div class="ql-export" id="cell-{cell}">{said}</div>')

    def equation_note(self, ids, sources): # below an equation
        def said(i): return ', '.join(f'<code>{n}</code>' for n in bound(sources[i])[:4])
        links = ', '.join(self.to(i, said(i)) for i in ids if i in self.module.cells)
        return '\n\n'+raw(f'<div class="ql-equation">in code: {links}</div>') if links else ''

    def out(self): # cells for Sphinx
        marked = [_marked(c) for c in self.cells]
        sources, leads = {i:s for i,_,s in marked}, code_of(marked) if self.module else {}
        for k,(c,(i,kind,source)) in enumerate(zip(self.cells, marked)):
            found, _ = directives(''.join(c['source']))
            if c['cell_type']=='markdown':
                text = linked(alone(source), self.url)
                yield markdown(text+(self.equation_note(leads[k], sources) if leads.get(k) else ''))
                if k<3 and source.startswith('# ') and self.facts: yield markdown(self.facts)
            elif source:
                if kind=='exported' and self.module and i in self.module.cells: yield markdown(self.export_note(i))
                yield code(source, c['outputs'], found)
                if n:=[t for d,t in NOTES.items() if d in found and found[d]!='true']:
                    yield markdown(raw(f'<div class="ql-flag">{html.escape(n[0])}</div>'))

def markdown(text): return dict(cell_type='markdown', metadata={}, source=text)

def code(source, outputs, found): # a cell of code with the tags that its directives ask for
    tags = ['exported'] if 'export' in found else []
    if imports_only(source): tags.append('hide-input')
    if found.get('echo')=='false': tags.append('remove-input')
    if found.get('output')=='false': tags.append('remove-output')
    meta = dict(tags=tags)
    if 'fig-alt' in found: meta['mystnb'] = dict(image=dict(alt=found['fig-alt']))
    if 'fig-cap' in found: meta.setdefault('mystnb', {})['figure'] = dict(caption=found['fig-cap'])
    return dict(cell_type='code', metadata=meta, source=source, outputs=outputs, execution_count=None)

def notebook(cells): # JSON
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'),
                  language_info=dict(name='python'))
    cells = [dict(c, id=f'c{k}') for k,c in enumerate(cells)]
    return json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5), indent=1)
