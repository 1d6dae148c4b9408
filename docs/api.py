"One page a module: what it exports, what the arguments mean, and its lines, which lead back to the cells."
import ast, copy
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Name, Operator, Punctuation, Text
from book import raw
from modules import DEFS, arguments
from tables import esc, ticks

class Plain(HtmlFormatter):
    "Names, operators and spaces without a span of their own"
    def _get_css_class(self, ttype):
        plain = ttype in (Name,Punctuation,Operator) or ttype in Text
        return '' if plain else super()._get_css_class(ttype)

def _call(name, node): # the header as one writes it, without annotations and `self`
    if isinstance(node, ast.ClassDef): return name
    own = copy.deepcopy(node.args); own.args = [a for a in own.args if a.arg!='self']
    for a in (*own.posonlyargs, *own.args, *own.kwonlyargs): a.annotation = None
    return f'{name}({ast.unparse(own)})'

def _rows(args): # a table of arguments
    def row(a):
        default = f' <span class="ql-default">= {esc(a.default)}</span>' if a.default else ''
        kind = f'<td><code>{esc(a.type)}</code></td>'
        return f'<tr><th scope="row">{esc(a.name)}{default}</th>{kind}<td>{ticks(a.says)}</td></tr>'
    if not args: return ''
    return f'<div class="ql-wide"><table class="ql-args"><tbody>{"".join(map(row,args))}</tbody></table></div>'

def _method(node, notes): # a public method of a class
    says = ast.get_docstring(node) or ''
    return f'<p class="ql-method"><code>.{esc(_call(node.name,node))}</code> {ticks(says)}</p>'+_rows(
        [a for a in arguments(node,notes) if a.says])

def symbol(module, name, node, up): # one exported name
    line = min([node.lineno, *(d.lineno for d in getattr(node,'decorator_list',()))])
    cell = module.cell_of(line)
    why = f' <a href="{up}nbs/{module.book}.html#cell-{cell}">why</a>' if cell else ''
    where = f'<p class="ql-from"><a href="#L-{line}">line {line}</a>{why}</p>'
    anchor = f'<span class="ql-anchor" id="{name}"></span>'
    head = f'{raw(anchor)}\n\n### {name}\n\n'
    if not isinstance(node, DEFS): # a table or a constant
        text = ast.unparse(node); short = text if len(text)<200 else text[:200]+' …'
        return head+raw(f'{where}<pre class="ql-call">{esc(short)}</pre>')
    notes = module.notes; args = arguments(node, notes)
    body = [where, f'<pre class="ql-call">{esc(_call(name,node))}</pre>',
            f'<p>{ticks(ast.get_docstring(node) or "")}</p>', _rows(args)]
    if isinstance(node, ast.ClassDef):
        own = [n for n in node.body if isinstance(n, DEFS[:2]) and (n.name[0]!='_' or n.name=='__call__')]
        body += [_method(n, notes) for n in own]
    return head+raw('\n'.join(b for b in body if b))

def listing(module, up): # the whole file with an address for every line
    lines = highlight(module.text, PythonLexer(stripnl=False), Plain(nowrap=True)).rstrip('\n').split('\n')
    cells = {a-1:c for c,(a,b) in module.cells.items()} # the line of the marker
    def line(n, text):
        mark = f' data-cell="{cells[n]}"' if n in cells else ''
        if mark: text = f'<a href="{up}nbs/{module.book}.html#cell-{cells[n]}">{text}</a>'
        return f'<span class="ql-line" id="L-{n}"{mark}>{text}</span>'
    return '<div class="highlight ql-code"><pre>'+'\n'.join(line(n,t) for n,t in enumerate(lines,1))+'</pre></div>'

def module_page(module): # markdown
    up = '../'*module.page.count('/')
    title, _, rest = module.doc.partition('\n')
    book = f'[Notebook](../{"../"*(module.page.count("/")-1)}nbs/{module.book}.ipynb)' if module.book else \
           'A kernel is a plain file; the notebooks of its room explain it.'
    parts = [f'# quantlab.{module.name}', title, rest.strip('\n'), book]
    if module.names: parts += ['## What it exports', *(symbol(module,n,node,up) for n,node in module.names.items())]
    parts += ['## Lines', raw(listing(module,up))]
    return '\n\n'.join(p for p in parts if p)+'\n'
