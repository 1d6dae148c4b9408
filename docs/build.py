"""Build the documentation from the stored notebooks, the registry and the recorded results.

    python docs/build.py            # docs/_build/html/index.html

A page loads nothing from elsewhere, whether it is read from a server or as a file. MathJax comes from npm at the first
build and is kept in docs/_build; without npm formulas are shown as they are written."""
import hashlib, shutil, subprocess, sys, tarfile, time
from pathlib import Path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]
from links import problems
from pages import DOCS, SRC, sources, write

OUT = DOCS/'_build'
STATIC, HTML = OUT/'static', OUT/'html'
MATHJAX = 'mathjax@3.2.2', '1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09'

def mathjax(): # the one file that is needed and the extensions that it may ask for; what is missing, in words
    name, digest = MATHJAX; packed = OUT/(name.replace('@','-')+'.tgz')
    if (STATIC/'mathjax/tex-svg.js').is_file(): return ''
    if not packed.is_file():
        if not shutil.which('npm'): return 'npm is missing: formulas are shown as they are written'
        subprocess.run(['npm','pack','--silent',name], cwd=OUT, capture_output=True)
        if not packed.is_file(): return f'npm pack {name} failed: formulas are shown as they are written'
    if hashlib.sha256(packed.read_bytes()).hexdigest()!=digest:
        packed.unlink(); raise SystemExit(f'{packed.name} is not the file that was expected and was removed; try again')
    with tarfile.open(packed) as t:
        for m in t.getmembers():
            inner = m.name.removeprefix('package/es5/')
            wanted = inner=='tex-svg.js' or inner.startswith('input/tex/extensions/') and 'all-packages' not in inner
            if m.isfile() and wanted: write(STATIC/'mathjax'/inner, t.extractfile(m).read())
    return ''

def sphinx(): # exit code; a warning is an error
    options = ['-q','-b','html','-c',DOCS,'-d',OUT/'doctrees','-j','auto','-W','--keep-going']
    code = subprocess.run([sys.executable,'-m','sphinx',*map(str,options),str(SRC),str(HTML)]).returncode
    for f in (*HTML.glob('_static/**/*.map'), *HTML.glob('_static/locales/**/*.*')): f.unlink() # no page asks for them
    return code

def main():
    start = time.time(); OUT.mkdir(exist_ok=True)
    for d in (SRC, HTML, OUT/'doctrees'): shutil.rmtree(d, ignore_errors=True) # so that no page stays of what is gone
    if missing:=mathjax(): print(missing)
    for f in ('site.css','site.js'): write(STATIC/f, (DOCS/f).read_bytes())
    sources(); code = sphinx(); bad = problems(HTML)
    if bad: print(*bad, sep='\n')
    size, n = sum(f.stat().st_size for f in HTML.rglob('*') if f.is_file())/1e6, len(list(HTML.rglob('*.html')))
    print(f'{HTML/"index.html"}: {n} pages, {size:.0f} MB, {time.time()-start:.0f} s, {len(bad)} broken links')
    sys.exit(bool(code or bad))

if __name__=='__main__': main()
