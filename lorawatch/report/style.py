"""The page's style: light and dark, wide and narrow, screen and paper."""

CSS = """
:root{color-scheme:light dark;--paper:#fbfbfa;--card:#fff;--ink:#1a1d21;--soft:#565e68;--hair:#dfe2e6;--grid:#e9ebee;
--accent:#1f5fae;--critical:#b3261e;--warning:#8a5a00;--info:#2b6390;--good:#23703b;--tint:#f2f4f7;
--l0:#2a6db5;--l1:#c2540a;--l2:#2c8062;--l3:#8a4fa3;--band:.07;--marked:#dcebfa}
@media (prefers-color-scheme:dark){:root{--paper:#131619;--card:#1a1e22;--ink:#e4e7ea;--soft:#9fa8b2;--hair:#30363d;
--grid:#262b31;--accent:#82b4f3;--critical:#f28b82;--warning:#e2b252;--info:#8fc1e6;--good:#7ccf95;--tint:#20252a;
--l0:#74aeee;--l1:#f0975a;--l2:#6cc7a1;--l3:#cf9de3;--band:.09;--marked:#1d3f5e}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;scroll-padding-top:1rem;-webkit-text-size-adjust:100%}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans",sans-serif;overflow-wrap:break-word}
main,header,footer,nav{max-width:70rem;margin:0 auto;padding:0 1.25rem}
h1,h2,h3,h4{line-height:1.25;font-weight:650;margin:0}
h1{font-size:1.75rem;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:3rem 0 1rem;letter-spacing:-.01em}
h3{font-size:1rem}h4{font-size:.875rem;margin:1rem 0 .35rem;color:var(--soft);font-weight:600}
p{margin:.5rem 0}a{color:var(--accent)}
a:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:2px solid var(--accent);outline-offset:2px;
border-radius:3px}
code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--card);padding:.5rem}
.unseen{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.soft{color:var(--soft)}
header{padding-top:2.25rem}
.kind{color:var(--soft);font-size:.875rem;margin:0 0 .25rem}
.verdict{display:flex;flex-wrap:wrap;gap:.25rem .75rem;align-items:baseline;margin:1rem 0 0;padding:.75rem 1rem;
background:var(--card);border:1px solid var(--hair);border-left:4px solid var(--c);border-radius:6px;
font-size:1.0625rem}
.verdict b{color:var(--c)}
.critical{--c:var(--critical)}.warning{--c:var(--warning)}.info{--c:var(--info)}.good{--c:var(--good)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:1rem 1.5rem;margin:1.5rem 0 0}
.tiles div{min-width:0}dt{color:var(--soft);font-size:.8125rem}dd{margin:0;font-variant-numeric:tabular-nums}
.tiles dd{font-size:1.0625rem;font-weight:600;overflow-wrap:anywhere}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1.25rem;list-style:none;margin:1.75rem 0 0;padding:.6rem 0;
border-top:1px solid var(--hair);border-bottom:1px solid var(--hair);font-size:.875rem}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
.card{background:var(--card);border:1px solid var(--hair);border-radius:8px;padding:1.1rem 1.25rem;margin:0 0 1rem}
.next{border-left:4px solid var(--accent)}
.next .copy{font-size:1.15rem}
.copy{display:inline-block;max-width:100%;user-select:all;-webkit-user-select:all;background:var(--tint);
border:1px solid var(--hair);border-radius:5px;padding:.2rem .55rem;overflow-wrap:anywhere}
.finding>h3{display:grid;grid-template-columns:auto minmax(0,1fr);align-items:baseline;gap:0 .6rem}
.card>p:first-child{margin-top:0}.chip{margin-left:.35rem;white-space:nowrap}
.finding:target{outline:2px solid var(--accent);outline-offset:2px}
.no{display:inline-block;min-width:1.45rem;height:1.45rem;line-height:1.45rem;border-radius:.75rem;text-align:center;
padding:0 .35rem;background:var(--c);color:var(--card);font-size:.8125rem;font-weight:700}
.chip{font-size:.75rem;font-weight:650;color:var(--c);border:1px solid currentColor;border-radius:1rem;
padding:0 .5rem}
.past{opacity:.85}.past .no{background:none;color:var(--c);box-shadow:inset 0 0 0 1.5px var(--c)}
.meta{color:var(--soft);font-size:.8125rem;margin:.35rem 0 .5rem}
.evidence{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(11rem,42%),1fr));gap:.5rem 1.25rem;margin:0}
.evidence div{min-width:0}.evidence dd{overflow-wrap:anywhere}
.advice{margin:.25rem 0 0;padding:0;list-style:none}
.advice li{display:grid;grid-template-columns:3.4rem minmax(0,1fr);padding:.6rem 0;
border-top:1px solid var(--hair)}.advice li:first-child{border-top:0;padding-top:.15rem}
.advice b{font-weight:550}.advice .meta{margin:.15rem 0 0}.with{margin:.25rem 0;padding-left:1.2rem}
.role{line-height:1.9;font-size:.8125rem;font-weight:650;color:var(--soft)}
.role.first{color:var(--accent)}
summary{cursor:pointer;color:var(--accent);font-size:.875rem;margin-top:.75rem;width:fit-content}
.page{font-size:.9rem;border-left:2px solid var(--hair);padding-left:1rem;margin-top:.5rem}
.page h4:first-child{margin-top:0}.page ul{margin:.5rem 0;padding-left:1.2rem}
.curves{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem}
.panel{margin:0;background:var(--card);border:1px solid var(--hair);border-radius:8px;padding:.9rem 1.1rem .6rem;
min-width:0;break-inside:avoid}
.panel.main{grid-column:1/-1}
.legend{display:flex;flex-wrap:wrap;gap:.1rem 1rem;margin:.2rem 0 .35rem;font-size:.8125rem;color:var(--soft)}
.legend b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key svg{vertical-align:middle;overflow:visible;margin-right:.2rem}
.plot{display:block;overflow:visible;font-size:11px;font-variant-numeric:tabular-nums}
.plot text{fill:var(--soft)}
.grid line{stroke:var(--grid)}.axis line{stroke:var(--hair)}
.grid text{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.l0{--l:var(--l0)}.l1{--l:var(--l1)}.l2{--l:var(--l2)}.l3{--l:var(--l3)}
path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.line{stroke:var(--l);stroke-width:1.9px}.raw{stroke:var(--l);stroke-width:1px;opacity:.38}
.dots{stroke:var(--l);stroke-width:5.5px}.limit{stroke:var(--l);stroke-width:1px;stroke-dasharray:5 4}
.l1 .line{stroke-width:1.7px;stroke-dasharray:none}
.hole{fill:var(--critical)}
.band{fill:var(--c);opacity:var(--band)}
.mark line{stroke:var(--c);stroke-width:1px;stroke-dasharray:2 3}.mark circle{fill:var(--c)}
.mark text{fill:var(--card);font-weight:700}.symptom circle{fill:var(--card);stroke:var(--c);stroke-width:1.5px}
.symptom text{fill:var(--c)}.mark:hover line,.mark:focus line{stroke-dasharray:none;stroke-width:2px}
.mark:focus-visible{outline:none}.mark:focus-visible circle{stroke:var(--ink);stroke-width:2.5px}
.strips rect{fill:transparent}.strips rect:hover{fill:var(--ink);opacity:.07}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.875rem;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);font-size:.875rem;padding:0 0 .5rem}
th,td{text-align:left;vertical-align:top;padding:.34rem .9rem .34rem 0;border-bottom:1px solid var(--hair)}
thead th{color:var(--soft);font-weight:600;font-size:.8125rem}
tbody th{font-weight:500}td.n,th.n{text-align:right;white-space:nowrap}
.facts{columns:2;column-gap:2.5rem}.facts section{break-inside:avoid;margin:0 0 1.5rem}.facts h3{margin:0 0 .25rem}
.facts table{table-layout:fixed}.facts th{width:46%}.facts td,.facts th{overflow-wrap:anywhere}
.facts td:last-child{width:23%;overflow-wrap:break-word;color:var(--soft);font-size:.8125rem;padding-right:0}
.reply{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;max-width:34rem}
.samples td{width:28%}.samples .prompt{width:16%}
.row{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem;line-height:1.75;background:var(--tint);
border-radius:6px;padding:.7rem .9rem;margin:.5rem 0;color:var(--soft);unicode-bidi:plaintext}
.row mark,.legend mark{background:var(--marked);color:var(--ink);border-bottom:2px solid var(--l0);padding:.05em 0}
.row mark::before,.legend mark::before{content:"["}.row mark::after,.legend mark::after{content:"]"}
.heat svg{display:block;overflow:visible;color:var(--l0)}.heat text{fill:var(--soft)}
.why{columns:1}.why dt{font-size:.875rem;color:var(--ink);font-weight:600;margin-top:.6rem}.why dd{color:var(--soft);
font-size:.875rem;overflow-wrap:anywhere}
footer{margin-top:3.5rem;padding-bottom:3rem;color:var(--soft);font-size:.8125rem}
footer p{border-top:1px solid var(--hair);padding-top:1rem}
@media (max-width:46rem){body{font-size:15px}main,header,footer,nav{padding-left:1rem;padding-right:1rem}
header{padding-top:1.25rem}h1{font-size:1.4rem}h2{margin-top:2.25rem}.curves{grid-template-columns:minmax(0,1fr)}
.card,.panel{padding:.85rem .9rem}.facts{columns:1}.stack thead{position:absolute;left:-99rem}
.stack,.stack tbody,.stack tr,.stack td,.stack th{display:block;width:auto}
.stack tr{border-bottom:1px solid var(--hair);padding:.6rem 0}.stack td,.stack th{border:0;padding:.15rem 0}
.stack caption{display:block}
.stack td::before{content:attr(data-h);display:block;color:var(--soft);font-size:.75rem;font-weight:600}
.samples td,.samples .prompt{width:auto}}
@media (forced-colors:active){.mark circle,.no{forced-color-adjust:none}}
@media print{:root{color-scheme:light;--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--hair:#bbb;--grid:#ddd;
--accent:#1f5fae;--critical:#b3261e;--warning:#8a5a00;--info:#2b6390;--good:#23703b;--tint:#f5f5f5;
--l0:#2a6db5;--l1:#c2540a;--l2:#2c8062;--l3:#8a4fa3;--band:.07;--marked:#dcebfa}
body{font-size:10pt}nav,.skip,.strips{display:none}main,header,footer{max-width:none;padding:0}
figure,tr,li,.row,.next,.evidence div{break-inside:avoid}h2,h3{break-after:avoid}a{color:inherit;text-decoration:none}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}details:not([open]){display:none}}
""".strip().replace("\n", "")
"""One line, so that the hash in the page's policy is of what stands there."""
