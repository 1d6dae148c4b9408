"Sphinx's settings. Pages are made by build.py; everything that a browser loads lies beside them."
import sys
from pathlib import Path
from sphinx.highlighting import PygmentsBridge

STATIC = Path(__file__).parent/'_build/static'
MATHJAX = 'mathjax/tex-svg.js' # draws glyphs as paths, so that a page opened as a file needs no font

sys.path.insert(0, str(Path(__file__).parent))
from api import Plain

PygmentsBridge.html_formatter = Plain # which halves the pages

project, html_title, language = 'quantlab', 'quantlab', 'en'
extensions = ['myst_nb', *(['sphinx.ext.mathjax'] if (STATIC/MATHJAX).is_file() else [])]
mathjax_path, mathjax_options = MATHJAX, {'defer':'defer'}
mathjax3_config = dict(options=dict(enableMenu=False), svg=dict(fontCache='local', mtextInheritFont=True))
nb_execution_mode, nb_render_markdown_format, nb_merge_streams = 'off', 'gfm', True
nb_ipywidgets_js, nb_code_prompt_show, nb_code_prompt_hide = {}, 'Show imports', 'Hide imports'
html_context = dict(default_mode='auto')
myst_enable_extensions = ['amsmath','dollarmath','colon_fence','attrs_inline']
myst_heading_anchors = 3
suppress_warnings = ['mystnb.unknown_mime_type','myst.header','misc.highlighting_failure']
html_theme = 'sphinx_book_theme'
html_theme_options = dict(use_download_button=False, use_fullscreen_button=False, show_navbar_depth=1,
                          max_navbar_depth=3, collapse_navbar=True, home_page_in_toc=True, show_toc_level=2,
                          navigation_with_keys=False, navbar_persistent=[],
                          article_header_end=['toggle-secondary-sidebar.html'])
html_sidebars = {'**':['navbar-logo.html','search-field.html','sbt-sidebar-nav.html']}
html_static_path, html_css_files, html_js_files = [str(STATIC)], ['site.css'], ['site.js']
html_copy_source = html_show_sourcelink = html_show_sphinx = html_show_copyright = False
html_last_updated_fmt = None
html_permalinks_icon, html_favicon = '#', 'icon.svg'
