"""The page's HTML, filled in by Jinja2 with escaping on.

It is a string in a module because Flower's app bundles carry no HTML files.
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style|safe }}</style>
</head>
<body>
<div class="wrap">
<header>
  <div>
    <h1>{{ title }}</h1>
    <p class="sub">{{ subtitle }}
      {%- if status %} <span class="status {{ status }}">{{ status }}</span>{% endif %}</p>
  </div>
  <button class="toggle" type="button" aria-label="Switch between light and dark">Dark</button>
</header>
<noscript><p>Charts need JavaScript; words and tables do not.</p></noscript>
{% if cards %}
<div class="cards">
  {%- for card in cards %}
  <div class="card"><b>{{ card.value }}</b><span>{{ card.title }}</span><small>{{ card.note }}</small></div>
  {%- endfor %}
</div>
{% endif %}
<section class="story" id="words">
  {%- for sentence in sentences %}
  <p>{{ sentence }}</p>
  {%- endfor %}
</section>
<nav aria-label="Contents">
  {%- for key, name in contents %}
  <a href="#section-{{ key }}">{{ name }}</a>
  {%- endfor %}
</nav>
{% macro panel(chart) %}
<section id="section-{{ chart.key }}">
  <h2>{{ chart.title }}</h2>
  <p>{{ chart.words }}</p>
  {% if chart.figure %}
  <div class="scroll"><div class="chart" id="{{ chart.key }}" data-height="{{ chart.height }}" role="img"
    aria-label="{{ chart.title }}" style="height: {{ chart.height }}px; min-width: {{ chart.min_width }}px"></div></div>
  <script type="application/json" id="figure-{{ chart.key }}">{{ chart.figure|tojson }}</script>
  {% endif %}
</section>
{% endmacro %}
{% for row in layout %}
  {% if row == "table" %}
<section id="section-table">
  <h2>Clients</h2>
  <p>Click a heading to sort. The worst tenth by the accuracy of the own expert is shaded.</p>
  <div class="tools">
    <input type="search" id="find" placeholder="Find a client" aria-label="Find a client">
    {%- for pick in table.picks %}
    <select data-column="{{ pick.column }}" aria-label="{{ pick.name }}">
      <option value="">all {{ pick.name }}s</option>
      {%- for value in pick["values"] %}
      <option value="{{ value }}">{{ pick.name }} {{ value }}</option>
      {%- endfor %}
    </select>
    {%- endfor %}
    <label><input type="checkbox" id="worst"> worst tenth only</label>
    <span id="count" aria-live="polite"></span>
  </div>
  <div class="table">
  <table class="clients">
    <thead><tr>
      {%- for column in table.columns %}<th scope="col"><button type="button">{{ column }}</button></th>{% endfor -%}
    </tr></thead>
    <tbody>
    {%- for line in table.lines %}
    <tr data-order="{{ loop.index0 }}"{% if line.worst %} class="worst"{% endif %}>
      {%- for cell in line.cells %}<td data-value="{{ cell.value }}"{% if loop.first %} class="name"{% endif %}>
      {%- if cell.colour %}<span class="dot" style="background: {{ cell.colour }}"></span>{% endif %}
      {{- cell.text }}</td>{% endfor -%}
    </tr>
    {%- endfor %}
    </tbody>
  </table>
  </div>
</section>
  {% elif row == "numbers" %}
<section id="section-numbers">
  <h2>Side by side</h2>
  <p>After each run's last round. The best of a line is bold.</p>
  <div class="table whole"><table>
    <thead><tr><th scope="col"></th>
      {%- for name in numbers.columns %}<th scope="col">{{ name }}</th>{% endfor %}</tr></thead>
    <tbody>
    {%- for line in numbers.lines %}
    <tr><td>{{ line.name }}</td>
      {%- for cell in line.cells %}<td{% if cell.best %} class="best"{% endif %}>{{ cell.text }}</td>{% endfor %}</tr>
    {%- endfor %}
    </tbody>
  </table></div>
</section>
  {% elif row == "config" %}
<section id="section-config">
  <h2>{{ config.title }}</h2>
  <p>{{ config.words }}</p>
  {% for command in config.commands %}
  <div class="command"><pre>{{ command }}</pre><button class="copy" type="button">Copy</button></div>
  {% endfor %}
  {% for part in config.parts %}
  <h2>{{ part.title }}</h2>
  <dl class="keys">
    {%- for entry in part.entries %}
    <div{% if entry.set %} class="set"{% endif %}><dt>{{ entry.key }}</dt><dd>{{ entry.value }}</dd></div>
    {%- endfor %}
  </dl>
  {% endfor %}
</section>
  {% elif row|length == 1 %}
{{ panel(row[0]) }}
  {% else %}
<div class="two">{% for chart in row %}{{ panel(chart) }}{% endfor %}</div>
  {% endif %}
{% endfor %}
<footer>Drag in a chart to zoom, double-click to come back. Made by DisUE {{ version }}.
This page loads nothing from anywhere; it may be kept, sent and opened offline.</footer>
</div>
<script>{{ plotly|safe }}</script>
<script>{{ script|safe }}</script>
</body>
</html>
"""
