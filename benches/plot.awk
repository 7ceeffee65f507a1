# A small plot as SVG: lines of "SERIES X Y", both axes logarithmic; "_" in a name is a blank.
# awk -v title=… -v xlabel=… -v ylabel=… -f plot.awk
function log10(n) { return log(n) / log(10) }
function x_at(x) { return left + (log10(x) - log10(x_least)) / (x_span ? x_span : 1) * width }
function y_at(y) { return top + height - (log10(y) - y_low) / y_span * height }
function short(n) { return n >= 1e6 ? n / 1e6 "M" : n >= 1000 ? n / 1000 "k" : n "" }
function text(x, y, anchor, what) { return sprintf("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y, anchor, what) }
function floor(n) { return int(n) - (n < int(n)) }
$3 + 0 > 0 {
    if (!($1 in number)) { number[$1] = ++series; name[series] = $1; gsub(/_/, " ", name[series]) }
    points[number[$1]] = points[number[$1]] " " $2 "," $3
    if (!(at[$2]++)) ticks[++columns] = $2
    if (!NR_seen++) { x_least = x_most = $2; y_least = y_most = $3 }
    if ($2 < x_least) x_least = $2; if ($2 > x_most) x_most = $2
    if ($3 < y_least) y_least = $3; if ($3 > y_most) y_most = $3
}
END {
    if (!series) exit 1
    left = 48; top = 34; width = 250; height = 150
    x_span = log10(x_most) - log10(x_least)
    # At least two decades, so that noise looks like noise.
    y_low = floor(log10(y_least)); y_high = -floor(-log10(y_most)); if (y_high - y_low < 2) y_high = y_low + 2
    y_span = y_high - y_low
    split("#0969da #bc4c00 #1a7f37 #8250df", colours, " ")
    print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 420 236\" width=\"420\" height=\"236\" role=\"img\">"
    print "<title>" title "</title><style>text{font:11px sans-serif;fill:#59636e}line{stroke:#d1d9e0}" \
        "@media(prefers-color-scheme:dark){text{fill:#9198a1}line{stroke:#3d444d}}</style>"
    printf "%s", text(left, 16, "start", title " (" ylabel ")")
    for (y = y_low; y <= y_high; y++) {
        printf "<line x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>\n", left, left + width, y_at(10 ^ y), y_at(10 ^ y)
        printf "%s", text(left - 6, y_at(10 ^ y) + 4, "end", short(10 ^ y))
    }
    for (i = 1; i <= columns; i++) printf "%s", text(x_at(ticks[i]), top + height + 16, "middle", short(ticks[i]))
    printf "%s", text(left + width / 2, top + height + 34, "middle", xlabel)
    for (i = 1; i <= series; i++) {
        count = split(substr(points[i], 2), pairs, " "); path = ""
        for (j = 1; j <= count; j++) {
            split(pairs[j], xy, ",")
            path = path sprintf("%s%.1f,%.1f", j > 1 ? " " : "", x_at(xy[1]), y_at(xy[2]))
            printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.5\" fill=\"%s\"><title>%s: %s, %s</title></circle>\n", \
                x_at(xy[1]), y_at(xy[2]), colours[i], name[i], xy[1], xy[2]
        }
        printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.5\"/>\n", path, colours[i]
        label[i] = y_at(xy[2]) + 4; value[i] = xy[2]
    }
    # Names next to the last points, without overlap.
    for (i = 1; i <= series; i++) for (j = 1; j <= series; j++) if (j != i && label[j] >= label[i] - 11 && label[j] <= label[i] + 11 && (label[j] > label[i] || j > i)) label[j] = label[i] + 12
    for (i = 1; i <= series; i++)
        printf "<circle cx=\"%d\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n%s", left + width + 12, label[i] - 4, colours[i], \
            text(left + width + 19, label[i], "start", name[i] " " value[i])
    print "</svg>"
}
