"""What the tests of reports share: a reader of pages, and records of evaluations."""

from html.parser import HTMLParser

from poa_hf.runs.evaluations import Evaluation


class Page(HTMLParser):
    """What tests ask of a page: its sections, the table's rows, what it loads and its commands."""

    def __init__(self, path):
        super().__init__()
        self.sections, self.loads, self.rows, self.text, self.commands = [], [], [], "", []
        self.inside, self.tags, self.attributes = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.attributes |= {*attributes}
        self.inside.append(tag)
        if tag == "section":
            self.sections.append(attributes["id"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "code":
            self.commands.append("")
        self.loads += [attributes[name] for name in ("src", "srcset", "href", "data") if name in attributes]

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("style", "script"):
            return
        self.text += " ".join(data.split()) + " "
        if "code" in self.inside:
            self.commands[-1] += data
        if "tbody" in self.inside and {"td", "th"} & set(self.inside):
            self.rows[-1][-1] += data


def evaluation(size: str, value: float, step: int = 4, **more) -> Evaluation:
    fields = dict(model="run", task="knn", metric="knn_accuracy", dataset="textures", test_split="test")
    fields |= dict(test_images=30, date="2026-01-01", settings={"k": 20})
    return Evaluation(size=size, value=value, step=step, **fields | more)
