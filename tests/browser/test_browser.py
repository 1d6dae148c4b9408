"""What a reader meets in a browser: JupyterLab runs a notebook, the documentation filters, formulas are drawn.

`make browser` runs these; they need Debian's chromium or another one, and the built documentation."""
import functools, http.server, importlib.util, json, os, shutil, socket, subprocess, sys, threading, time
import urllib.request
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT/'docs/_build/html'
CHROMIUM = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)
FLAGS = ('--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
         '--disable-component-update --disable-sync').split()
SHOTS = os.environ.get('SHOTS') # a folder for pictures of the pages

def missing(): # why nothing can be tried, or nothing
    if not os.environ.get('BROWSER'): return 'browser tests are run by make browser'
    if not CHROMIUM: return 'chromium is not installed'
    if not importlib.util.find_spec('playwright'): return 'the extra browser is not installed; run make browser'
    return ''

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())
unbuilt = not missing() and not (SITE/'index.html').is_file()
built = pytest.mark.skipif(unbuilt, reason='the documentation is not built; run make docs')

@pytest.fixture(scope='module')
def chromium():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()

class Quiet(http.server.SimpleHTTPRequestHandler):
    "Serves files and says nothing"
    def log_message(self, *args): return

@pytest.fixture(scope='module', params=['file','served'])
def site(request): # where the documentation is read from
    if request.param=='file': yield SITE.as_uri(); return
    server = http.server.ThreadingHTTPServer(('127.0.0.1',0), functools.partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()

class Opened:
    "A page, and what went wrong while it was open"
    def __init__(self, browser, url, width=1200, height=1000):
        self.wrong, self.page = [], browser.new_page(viewport=dict(width=width, height=height))
        self.page.on('console', lambda m: m.type=='error' and self.wrong.append(m.text))
        self.page.on('pageerror', lambda e: self.wrong.append(str(e)))
        self.page.on('requestfailed', lambda r: self.wrong.append(f'not loaded: {r.url}'))
        self.asked = []; self.page.on('request', lambda r: self.asked.append(r.url))
        self.page.goto(url); self.page.wait_for_load_state('networkidle')
    def close(self, name='', home=''): # nothing went wrong, and nothing came from elsewhere
        if SHOTS and name: self.page.screenshot(path=f'{SHOTS}/{name}.png')
        far = [u for u in self.asked if home and not u.startswith((home,'data:','blob:'))]
        self.page.close()
        assert not self.wrong and not far, [*self.wrong, *far]

def shown(page, column): # entries of the rows that are visible
    rows = f'table.ql tbody tr:not([hidden]) td:nth-child({column})'
    return page.eval_on_selector_all(rows, 'es => es.map(e => e.dataset.v ?? e.textContent.trim())')

@built
def test_the_catalogue_filters_and_sorts(chromium, site):
    o = Opened(chromium, f'{site}/index.html'); p = o.page; names = shown(p, 1)
    assert len(names)>100 and 'gptq' in names and names==sorted(names)
    p.select_option('.ql-bar select[aria-label=room]', 'ptq')
    assert set(shown(p,2))=={'ptq'} and 0<len(shown(p,1))<len(names)
    p.fill('.ql-bar input', 'error feedback'); p.fill('.ql-bar input', 'gptq')
    few = shown(p, 1); assert 'gptq' in few and len(few)<len(names)
    assert p.text_content('.ql-count')==f'{len(few)} of {len(names)} techniques'
    p.fill('.ql-bar input', ''); p.select_option('.ql-bar select[aria-label=room]', '')
    for _ in range(2): p.click('table.ql th[data-key=name] button')
    assert shown(p,1)[0]>shown(p,1)[-1] and sorted(shown(p,1))==sorted(names)
    p.select_option('.ql-bar select[aria-label=verdicts]', 'not reproduced')
    assert all('not reproduced' in v.split('|') for v in shown(p,5))
    o.close('front-1200', site)

@built
def test_from_the_front_page_to_gptq_to_a_method_of_ones_own(chromium, site):
    o = Opened(chromium, f'{site}/index.html'); p = o.page
    assert p.evaluate("(e => e.scrollWidth<=e.clientWidth)(document.querySelector('.ql-wide'))")
    p.click('.ql-cards a:has-text("Tour")'); p.click('article p a:has-text("GPTQ")')
    p.wait_for_selector('article img[alt]:not([alt=""])'); assert 'ptq/02_gptq.ipynb' in p.inner_text('.ql-facts')
    p.go_back(); p.click('article li a:has-text("CONTRIBUTING.md")')
    assert 'make new room=ptq' in p.inner_text('article')
    p.click('article td a:has-text("nbs/ptq/02_gptq.ipynb")'); assert p.url.endswith('nbs/ptq/02_gptq.html')
    o.close('', site)

@built
@pytest.mark.parametrize('name', ['index','evidence','nbs/ptq/02_gptq','league/solver','api/ptq/gptq','nbs/index'])
def test_pages_fit_a_narrow_screen(chromium, site, name):
    o = Opened(chromium, f'{site}/{name}.html', 400, 900)
    assert o.page.evaluate('document.documentElement.scrollWidth')<=400
    o.close(f'{name.replace("/","-")}-400', site)

@built
def test_formulas_are_drawn_and_lead_to_code(chromium, site):
    if not (SITE/'_static/mathjax').is_dir(): pytest.skip('the documentation was built without npm: no MathJax')
    o = Opened(chromium, f'{site}/nbs/ptq/02_gptq.html'); p = o.page
    p.wait_for_selector('mjx-container svg')
    assert p.locator('mjx-container').count()==p.locator('.math').count()>=10
    assert not p.locator('mjx-merror, [data-mjx-error]').count() and '$$' not in p.inner_text('article')
    o.close('gptq-1200', site)
    o = Opened(chromium, f'{site}/nbs/ptq/02_gptq.html'); p = o.page
    p.click('.ql-equation a:has-text("inverse_factor")'); p.wait_for_selector('.ql-here')
    assert 'def inverse_factor' in ''.join(p.locator('.ql-here').all_inner_texts())
    p.click('.ql-line[data-cell] a >> nth=2'); p.wait_for_selector('.ql-export')
    assert '02_gptq.html#cell-' in p.url
    o.close()

@built
def test_evidence_of_one_method_has_an_address(chromium, site):
    o = Opened(chromium, f'{site}/evidence.html#q=method:gptq-act&verdict=reproduced')
    assert set(shown(o.page,1))=={'gptq-act'} and set(shown(o.page,3))=={'reproduced'}
    o.close('', site)
    for name,page in (('evidence','evidence'),('league','league/solver'),('tour','nbs/index'),('api','api/ptq/gptq')):
        Opened(chromium, f'{site}/{page}.html').close(f'{name}-1200', site)

@built
def test_search_finds_a_section(chromium, site):
    o = Opened(chromium, f'{site}/search.html?q=Cholesky'); o.page.wait_for_selector('ul.search li a')
    assert any('02_gptq' in h for h in o.page.eval_on_selector_all('ul.search li a', 'es => es.map(e => e.href)'))
    o.page.close()

def test_the_report_opens(chromium, tmp_path):
    code = 'import sys; from quantlab.recipes.cli import main; sys.exit(main())'
    args = '--bits 4 --methods rtn --calib 1 --tokens 1024 --items 0 --out'.split()
    subprocess.run([sys.executable,'-c',code,'run',*args,tmp_path/'out'], cwd=ROOT, check=True, capture_output=True)
    o = Opened(chromium, (tmp_path/'out/report.html').as_uri()); p = o.page
    assert p.locator('table').count()>=3 and all(p.eval_on_selector_all('img', 'es => es.map(e => e.naturalWidth>0)'))
    o.close('report', tmp_path.as_uri())

@pytest.fixture
def lab(tmp_path): # JupyterLab over a copy of the notebook, with settings of its own: address, copy
    shutil.copy(ROOT/'nbs/ptq/02_gptq.ipynb', tmp_path/'gptq.ipynb')
    with socket.socket() as s: s.bind(('127.0.0.1',0)); port = s.getsockname()[1]
    own = {f'JUPYTER_{k}_DIR':str(tmp_path/k.lower()) for k in ('CONFIG','DATA','RUNTIME')}
    options = dict(ServerApp=dict(root_dir=str(tmp_path), port=port, open_browser=False, allow_root=True),
                   IdentityProvider=dict(token='lab'), LabApp=dict(news_url=None))
    (tmp_path/'config').mkdir(); (tmp_path/'config/jupyter_server_config.json').write_text(json.dumps(options))
    env = {**os.environ, **own, 'TRITON_INTERPRET':'1', 'OMP_NUM_THREADS':'1'}
    with open(tmp_path/'log','w') as log:
        p = subprocess.Popen([sys.executable,'-m','jupyterlab'], env=env, cwd=tmp_path, stdout=log, stderr=log)
    url = f'http://127.0.0.1:{port}'
    for _ in range(240):
        try: urllib.request.urlopen(f'{url}/api?token=lab'); break
        except OSError: time.sleep(.25)
    yield url, tmp_path/'gptq.ipynb'
    p.terminate(); p.wait(20)

def test_jupyterlab_runs_the_gptq_notebook(chromium, lab):
    url, copy = lab
    for c in (nb:=json.loads(copy.read_text()))['cells']: c.update(dict(outputs=[]) if c['cell_type']=='code' else {})
    copy.write_text(json.dumps(nb))
    p = chromium.new_page(viewport=dict(width=1400, height=1000)); p.goto(f'{url}/lab/tree/gptq.ipynb?token=lab&reset')
    p.wait_for_selector('.jp-Notebook', timeout=90_000); p.wait_for_selector(r'text=/\| Idle/', timeout=90_000)
    p.get_by_text('Run', exact=True).click(); p.get_by_text('Run All Cells', exact=True).click()
    for _ in range(150): # two seconds each
        p.wait_for_timeout(2000); p.keyboard.press('Control+s')
        cells = [c for c in json.loads(copy.read_text())['cells'] if c['cell_type']=='code']
        bad = [o for c in cells for o in c['outputs'] if o['output_type']=='error']
        if bad or all(c['execution_count'] for c in cells): break
    if SHOTS: p.screenshot(path=f'{SHOTS}/jupyterlab.png')
    p.close()
    assert not bad and all(c['execution_count'] for c in cells), bad or 'not all cells were run in five minutes'
    assert any('image/png' in o.get('data',()) for c in cells for o in c['outputs'])
