import numpy as np

from poa_hf import ElasticSpace, PoaResNetConfig, PoaViTConfig
from poa_hf.figures.grids import grids
from poa_hf.sub_network import SubNetwork


def test_one_elastic_stage_is_one_panel_of_width_and_depth():
    space = PoaViTConfig().space
    (grid,) = grids(space, {space.smallest: 0.5})
    assert grid.values.shape == (13, 11) and grid.values[0, 0] == 0.5 and grid.exists.all()
    assert np.isnan(grid.values).sum() == 142
    assert (grid.title, grid.row_name, grid.column_name) == ("", "blocks", "width")


def test_two_elastic_stages_are_a_panel_for_each_width():
    space = PoaResNetConfig().space
    panels = grids(space, {space.full: 0.7})
    assert [grid.title for grid in panels] == [f"width {width}" for width in space.widths]
    assert panels[-1].values[-1, -1] == 0.7 and panels[0].values.shape == (5, 31)
    assert (panels[0].row_name, panels[0].column_name) == ("blocks of stage 2", "blocks of stage 3")


def test_more_elastic_stages_are_one_panel_of_the_best_of_each_total_depth():
    depths = tuple((a, b, c) for a in (1, 2) for b in (1, 2) for c in (1, 2))
    space = ElasticSpace((16, 32), depths)
    (grid,) = grids(space, {SubNetwork(16, (1, 1, 2)): 0.3, SubNetwork(16, (2, 1, 1)): 0.4})
    assert grid.rows == (3, 4, 5, 6) and grid.columns == (16, 32)
    assert grid.values[1, 0] == 0.4 and np.isnan(grid.values).sum() == 7
