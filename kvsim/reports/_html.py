"""The shell of a page that stands alone: style, script, cards, tables, figures.

Nothing is fetched. The page follows the reader's choice of light or dark, `#light` and `#dark` override it, and paper
is always light. The script only adds read-outs; without it everything else is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from kvsim.reports import _colours

__all__ = ["cards", "figure", "section", "shell", "table"]

_CSS = """
:root{--bg:#fff;--fg:#1b1f24;--soft:#5a636e;--rule:#d9dde2;--card:#f6f7f9;--warn:#8a4b00;--link:#1f5fbf}
@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){--bg:#14171b;--fg:#e4e7eb;--soft:#a2abb6;
--rule:#343a42;--card:#1c2026;--warn:#f0b35a;--link:#7fb2ff;color-scheme:dark}}
@media screen{:root[data-theme=dark]{--bg:#14171b;--fg:#e4e7eb;--soft:#a2abb6;--rule:#343a42;--card:#1c2026;
--warn:#f0b35a;--link:#7fb2ff;color-scheme:dark}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Liberation Sans",sans-serif}
main,header,footer{max-width:1000px;margin:0 auto;padding:0 20px}
header{padding-top:26px}
footer{padding-bottom:40px;color:var(--soft);font-size:13px}
h1{font-size:24px;line-height:1.25;margin:0 0 4px}
h2{font-size:19px;margin:44px 0 4px;padding-top:14px;border-top:1px solid var(--rule)}
h3{font-size:15px;margin:24px 0 4px}
p{margin:4px 0 10px;max-width:75ch}
a{color:var(--link)}
nav{margin-top:10px;font-size:14px}
nav{display:flex;flex-wrap:wrap;gap:2px 16px}
nav span{margin-left:auto}
.soft{color:var(--soft)}
.warn{color:var(--warn)}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:10px;margin:18px 0}
.card{background:var(--card);border:1px solid var(--rule);border-radius:8px;padding:9px 12px}
.card b{display:block;font-size:20px;line-height:1.3;font-variant-numeric:tabular-nums}
.card span{display:block;font-size:12.5px;color:var(--soft);line-height:1.35}
figure{margin:6px 0 4px;position:relative}
.scroll{overflow-x:auto}
.fig svg[role=img]{display:block;width:100%;min-width:720px;height:auto;
font-family:inherit;font-variant-numeric:tabular-nums}
.half svg[role=img]{min-width:300px}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:6px 24px}
figcaption{font-size:13px;color:var(--soft);max-width:85ch}
.legend{font-size:13px;margin:4px 0 2px;line-height:1.7}
.c{color:var(--k)}
.a{fill:var(--k);stroke:var(--bg);stroke-width:.5;vector-effect:non-scaling-stroke}
.f{fill:var(--k)}
.l{fill:none;stroke:var(--k);stroke-width:2;stroke-linejoin:round}
svg .t{fill:var(--soft)}
svg:focus-visible{outline:2px solid var(--link);outline-offset:2px}
table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:4px 0}
th,td{padding:3px 10px 3px 0;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;white-space:nowrap}
th{font-weight:600}
th.w,td.w{text-align:left}
td.s{text-align:left;white-space:normal;min-width:240px}
details{margin:4px 0 12px;font-size:13px}
summary{cursor:pointer;color:var(--link);width:fit-content}
.tip{position:absolute;pointer-events:none;background:var(--bg);border:1px solid var(--rule);border-radius:6px;
padding:6px 9px;font-size:12.5px;line-height:1.45;box-shadow:0 2px 10px #0004;white-space:nowrap;z-index:2;
font-variant-numeric:tabular-nums}
.tip i{display:inline-block;width:9px;height:9px;border-radius:2px;background:var(--k);margin-right:6px}
@media print{nav,.tip{display:none}body{font-size:12px}figure,.card,tr{break-inside:avoid}h2,h3{break-after:avoid}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}.fig svg[role=img]{min-width:0}}
"""

_JS = """
(function(){"use strict";
var root=document.documentElement,space="http://www.w3.org/2000/svg";
function theme(){var h=location.hash.slice(1);
 if(h==="light"||h==="dark")root.setAttribute("data-theme",h);else if(h==="auto")root.removeAttribute("data-theme");}
addEventListener("hashchange",theme);theme();
function add(parent,tag,text,name){var e=document.createElement(tag);if(name)e.className=name;
 if(text)e.appendChild(document.createTextNode(text));parent.appendChild(e);return e;}
document.querySelectorAll("svg+script[type='application/json']").forEach(function(data){
 var svg=data.previousElementSibling,d=JSON.parse(data.textContent),fig=svg.closest("figure"),at=-1,tip=null;
 var line=document.createElementNS(space,"path");
 line.setAttribute("stroke","currentColor");line.setAttribute("stroke-opacity",".6");
 function hide(){at=-1;if(tip){tip.remove();tip=null;}line.remove();}
 function show(i){
  if(i<0||i>=d.p.length)return;
  var x=d.l+(d.p[i]+(i+1<d.p.length?d.p[i+1]:1000))/2000*(d.r-d.l);
  if(i===at)return;
  hide();at=i;line.setAttribute("d","M"+x+" "+d.t+"V"+d.b);svg.appendChild(line);
  tip=add(fig,"div","","tip");add(tip,"b","from "+d.x[i]+" "+d.u);
  d.s.slice().reverse().forEach(function(s){if(s[2][i]===null||(s[2][i]===0&&d.s.length>6))return;
   var row=add(tip,"div");add(row,"i","","k-"+s[1]);
   row.appendChild(document.createTextNode(s[0]+": "+s[2][i].toLocaleString("en")+(d.y?" "+d.y:"")));});
  var box=svg.getBoundingClientRect(),out=fig.getBoundingClientRect(),scale=box.width/svg.viewBox.baseVal.width;
  var px=box.left-out.left+x*scale,wide=tip.offsetWidth;
  tip.style.left=Math.max(0,px+14+wide>out.width?px-wide-14:px+14)+"px";
  tip.style.top=(box.top-out.top+d.t*scale)+"px";
 }
 function find(event){
  var box=svg.getBoundingClientRect(),x=(event.clientX-box.left)*svg.viewBox.baseVal.width/box.width;
  var p=(x-d.l)/(d.r-d.l)*1000,i=d.p.length-1;
  if(p<-5||p>1005)return hide();
  while(i>0&&d.p[i]>p)i--;
  show(i);}
 svg.addEventListener("pointermove",find);svg.addEventListener("pointerleave",hide);svg.addEventListener("blur",hide);
 svg.addEventListener("keydown",function(event){
  if(event.key==="ArrowRight"){show(Math.min(at+1,d.p.length-1));event.preventDefault();}
  else if(event.key==="ArrowLeft"){show(Math.max(at-1,0));event.preventDefault();}
  else if(event.key==="Escape")hide();});
});
root.setAttribute("data-script","ok");
})();
"""


def shell(title: str, head: str, body: str, foot: str) -> str:
    """Return a whole page: one file, nothing fetched.

    Parameters
    ----------
    title : plain text.
    head, body, foot : HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}{_colours.css()}</style>\n</head>\n<body>\n"
        f"<header>{head}</header>\n<main>\n{body}\n</main>\n<footer>{foot}</footer>\n"
        f"<script>{_JS}</script>\n</body>\n</html>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """Return a section with its anchor; nothing where it has no parts."""
    inner = "\n".join(part for part in parts if part)
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{inner}\n</section>' if inner else ""


def cards(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return cards of (what, number, remark)."""
    out = [
        f'<div class="card"><span>{escape(what)}</span><b>{escape(value)}</b><span>{escape(remark)}</span></div>'
        for what, value, remark in entries
    ]
    return f'<div class="cards">{"".join(out)}</div>'


def figure(
    title: str, picture: str, *, caption: str = "", legend: str = "", numbers: str = "", half: bool = False
) -> str:
    """Return a picture with its title, legend, caption, and its numbers as a table that opens on demand."""
    sort = "fig half" if half else "fig"
    more = f"<details><summary>Numbers</summary>{numbers}</details>" if numbers else ""
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    inner = f'<div class="scroll">{picture}</div>{said}'
    return f'<h3>{escape(title)}</h3>{legend}<figure class="{sort}">{inner}</figure>{more}'


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, words: Sequence[int] = (0,), text: Sequence[int] = (),
    warn: Iterable[int] = (), label: str = "",
) -> str:  # fmt: skip
    """Return a table that scrolls sideways where it does not fit.

    Parameters
    ----------
    header, rows : plain text.
    words : columns set flush left; `text` those that may break into lines.
    warn : rows whose cells are set in the colour of warnings.
    label : what the table shows, for those who do not see it.
    """
    kinds = ["s" if i in text else "w" if i in words else "" for i in range(len(header))]
    marked = set(warn)

    def line(cells: Sequence[str], tag: str, more: str = "") -> str:
        out = []
        for i, (cell, kind) in enumerate(zip(cells, kinds, strict=True)):
            sort = f' class="{kind}"' if kind else ""
            name, scope = ("th", ' scope="row"') if tag == "td" and i == 0 else (tag, "")
            if tag == "th":
                sort, scope = (' class="w"' if kind else ""), ' scope="col"'
            weight = ' style="font-weight:400"' if name == "th" and tag == "td" else ""
            out.append(f"<{name}{scope}{sort}{weight}>{escape(cell)}</{name}>")
        return f"<tr{more}>{''.join(out)}</tr>"

    body = "".join(line(row, "td", ' class="warn"' if i in marked else "") for i, row in enumerate(rows))
    named = f' aria-label="{escape(label)}"' if label else ""
    return f'<div class="scroll"><table{named}><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'
