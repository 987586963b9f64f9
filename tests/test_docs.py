"""The class docstrings of the environments are their pages of documentation, in Farama's headings, rendered
as Farama renders them.
"""

import ast
import inspect

import gymnasium as gym
import pytest
from markdown_it import MarkdownIt

from sana_wm_env import RoomsEnv, SanaWMEnv
from sana_wm_env.observations import OBS_MODES

HEADINGS = [
    "Description",
    "Action Space",
    "Observation Space",
    "Rewards",
    "Starting State",
    "Episode End",
    "Arguments",
    "Vectorized Environment",
    "Version History",
    "Citation",
]


class Page:
    """A docstring as it renders: sections by heading, each the source of its blocks and its tables."""

    def __init__(self, of: type):
        self.tables: dict[str, list[list[list[str]]]] = {}  # heading -> tables -> rows -> cells
        self.texts: dict[str, list[str]] = {}
        heading, before = "", ""
        for token in MarkdownIt("commonmark").enable("table").parse(inspect.getdoc(of) or ""):
            if token.type == "table_open":
                self.tables[heading].append([])
            elif token.type == "tr_open":
                self.tables[heading][-1].append([])
            elif token.type == "inline" and before == "heading_open":
                heading = token.content
                self.texts[heading], self.tables[heading] = [], []
            elif token.type == "inline" and before in ("th_open", "td_open"):
                self.tables[heading][-1][-1].append(token.content)
            elif token.type == "inline" and heading:
                self.texts[heading].append(token.content)
            before = token.type


@pytest.fixture(params=[SanaWMEnv, RoomsEnv])
def env_class(request):
    return request.param


def test_headings_in_farama_s_order(env_class):
    page = Page(env_class)
    assert [
        heading for heading in page.texts if heading in HEADINGS
    ] == HEADINGS  # a page may have more of its own in between
    assert all(page.texts[heading] or page.tables[heading] for heading in page.texts)


def test_tables_render(env_class):
    """A malformed table renders as a paragraph full of bars, a row with a bar too many or too few loses cells
    or gets empty ones.
    """
    page = Page(env_class)
    assert not [text for texts in page.texts.values() for text in texts if text.startswith("|")]
    tables = {heading: found for heading, found in page.tables.items() if found}
    assert tables.keys() >= {"Action Space", "Starting State", "Arguments"}
    assert all(len(table) > 1 for found in tables.values() for table in found)
    source = [line.strip() for line in inspect.getdoc(env_class).splitlines()]
    bars = 0
    for line in source:
        if line.startswith("|"):
            assert line.endswith("|") and bars in (0, line.count("|")), line
        bars = line.count("|") if line.startswith("|") else 0


def test_arguments_are_those_of_the_constructor_with_their_defaults(env_class):
    (table,) = Page(env_class).tables["Arguments"]
    assert table[0] == ["Parameter", "Type", "Default", "Description"]
    documented = {name.strip("`"): ast.literal_eval(default.strip("`")) for name, _, default, _ in table[1:]}
    parameters = inspect.signature(env_class).parameters
    assert documented == {name: parameter.default for name, parameter in parameters.items()}
    assert list(documented) == list(parameters) and all(description for *_, description in table[1:])


def test_the_page_names_the_actions_modes_and_keys_of_info(env_class):
    page = Page(env_class)
    made = map(gym.make, ("SanaWM-v0", "SanaWM-Rooms-v0"))
    (env,) = [env for env in made if type(env.unwrapped) is env_class]
    action_rows = page.tables["Action Space"][0][1:]
    assert action_rows[0][0].startswith("0") and action_rows[-1][0].endswith(
        str(env.action_space.shape[0] - 1)
    )
    arguments = {row[0].strip("`"): row[3] for row in page.tables["Arguments"][0][1:]}
    assert all(f'`"{mode}"`' in arguments["obs_mode"] for mode in OBS_MODES)
    assert all(f'`"{mode}"`' in arguments["render_mode"] for mode in env.metadata["render_modes"])
    options = [row[0].strip("`") for row in page.tables["Starting State"][0][1:]]
    assert options == list(env_class.reset_options)
    if env_class is SanaWMEnv:  # the page of the rooms refers to this one
        keys = [row[0].strip("`") for row in page.tables["Observation Space"][-1][1:]]
        assert keys == list(gym.make("SanaWM-Rooms-v0").reset(seed=0)[1])
