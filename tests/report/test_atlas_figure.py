"""Figure 1: tasks, modalities, lengths and regions, as numbers and as pictures."""

from hba_ray.report.atlas_tables import atlas_table
from hba_ray.report.charts import forest_file
from tests.helpers.surveys import published_survey

FIGURE = atlas_table("F1", published_survey())
SHEETS = {sheet.title: sheet for sheet in FIGURE.sheets}


def test_modalities_stand_beside_the_published_share_which_tables_2_and_7_do_not_give():
    rows = {row[0]: row[1:] for row in SHEETS["Modalities and clips"].rows}
    assert rows["rows with video"] == ("88.5%", "83.6%") and rows["rows with text"] == ("100.0%", "–")
    assert (
        rows["videos"] == ("2", "35,046") and rows["sounds without a video"] == ("1", "10,287") and rows["transcripts"] == ("–", "25,385")
    )
    assert SHEETS["Modalities and clips"].notes[0].startswith("By Tables 2 and 7 88.5% of the rows")
    (share,) = [one for one in FIGURE.numbers if one.row == "rows with video"]
    assert share.agrees is False


def test_lengths_have_classes_and_the_published_share_of_long_clips():
    rows = {row[0]: row[1:] for row in SHEETS["Lengths of clips"].rows}
    assert rows["0 to 5 s"] == ("2", "66.7%", "–") and rows["20 to 60 s"] == ("1", "33.3%", "–")
    assert rows["over 20 s"] == ("1", "33.3%", "29.2%") and "cannot be read: 1" in SHEETS["Lengths of clips"].notes[0]
    assert SHEETS["Lengths by corpus"].rows[0] == ("CMU-MOSEI", "2", "0.6", "4.0", "17.0", "30.0", "50.0%")


def test_every_task_has_its_datasets_and_both_tasks_of_mmpsy_have_its_rows():
    tasks = [(row[0], row[1], row[2]) for row in SHEETS["Tasks"].rows]
    assert ("DEP", "MMPsy (DEP)", "1,275") in tasks and ("ANX", "MMPsy (ANX)", "1,275") in tasks
    assert len(tasks) == 16 and len({task for task, *_ in tasks}) == 10


def test_pictures_show_measured_and_published_on_one_scale():
    assert [forest.title for forest in FIGURE.forests] == ["Rows of each task", "Modalities", "Lengths of clips", "Regions"]
    tasks = FIGURE.forests[0]
    assert (tasks.scale.low, tasks.scale.high) == (0, 30_000) and len(tasks.groups) == 10
    drawn = forest_file(tasks, FIGURE.title)
    assert drawn.count('class="dot"') == 16 + 1 and "measured" in drawn and "95% interval" not in drawn
