"""Segment files as annotation tools, recognizers and diarizers write them: three turns of two speakers."""

import json

TURNS = [(0.5, 2.25, "anna", "well then"), (2.0, 4.0, "ben", "no, never"), (4.125, 4.375, "anna", "why")]


def whisper_json(**changes) -> str:
    segments = [{"id": i, "start": s, "end": e, "text": f" {t}", "speaker": who, "words": []}
                for i, (s, e, who, t) in enumerate(TURNS)]  # fmt: skip
    return json.dumps({"segments": segments, "language": "en", **changes})


def textgrid_text(short: bool = False) -> str:
    """Returns a TextGrid as Praat writes it, with two interval tiers and one point tier."""
    tiers = {"anna": [(0.5, 2.25, "well then"), (4.125, 4.375, "why")], "ben": [(2.0, 4.0, 'no, ""never""')]}
    head = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    if short:
        lines = ["0", "5", "<exists>", "3"]
    else:
        lines = ["xmin = 0 ", "xmax = 5 ", "tiers? <exists> ", "size = 3 ", "item []: "]
    for number, (name, own) in enumerate(tiers.items(), start=1):
        intervals, at = [], 0.0
        for start, end, text in own:
            intervals += [(at, start, ""), (start, end, text)]
            at = end
        intervals.append((at, 5, ""))
        if short:
            lines += ['"IntervalTier"', f'"{name}"', "0", "5", str(len(intervals))]
            lines += [line for start, end, text in intervals for line in (f"{start:g}", f"{end:g}", f'"{text}"')]
            continue
        lines += [f"    item [{number}]:", '        class = "IntervalTier" ', f'        name = "{name}" ',
                  "        xmin = 0 ", "        xmax = 5 ",
                  f"        intervals: size = {len(intervals)} "]  # fmt: skip
        for index, (start, end, text) in enumerate(intervals, start=1):
            lines += [f"        intervals [{index}]:", f"            xmin = {start:g} ",
                      f"            xmax = {end:g} ", f'            text = "{text}" ']  # fmt: skip
    if short:
        lines += ['"TextTier"', '"clicks"', "0", "5", "1", "1.5", '"x"']
    else:
        lines += ["    item [3]:", '        class = "TextTier" ', '        name = "clicks" ', "        xmin = 0 ",
                  "        xmax = 5 ", "        points: size = 1 ", "        points [1]:", "            number = 1.5 ",
                  '            mark = "x" ']  # fmt: skip
    return head + "\n".join(lines) + "\n"


EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2020-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>
<TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="2250"/>
<TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="4125"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="4375"/>
<TIME_SLOT TIME_SLOT_ID="ts5" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="ts6" TIME_VALUE="4000"/>
</TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="default-lt" PARTICIPANT="anna" TIER_ID="A-speech">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>well then</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE>why</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER LINGUISTIC_TYPE_REF="default-lt" PARTICIPANT="ben" TIER_ID="B-speech">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts5" TIME_SLOT_REF2="ts6">
<ANNOTATION_VALUE>no, never</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER LINGUISTIC_TYPE_REF="ref-lt" PARENT_REF="B-speech" TIER_ID="B-gloss">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a3"><ANNOTATION_VALUE>x</ANNOTATION_VALUE>
</REF_ANNOTATION></ANNOTATION></TIER>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>
</ANNOTATION_DOCUMENT>
"""


def clock(seconds: float, mark: str = ",") -> str:
    whole = round(1000 * seconds)
    return f"{whole // 3_600_000:02}:{whole // 60_000 % 60:02}:{whole // 1000 % 60:02}{mark}{whole % 1000:03}"


SRT = "".join(
    f"{i}\n{clock(start)} --> {clock(end)}\n{text}\n\n" for i, (start, end, _, text) in enumerate(TURNS, start=1)
)
FILES = {
    "a.csv": "start,end,speaker,text\n" + "".join(f'{s},{e},{who},"{t}"\n' for s, e, who, t in TURNS),
    "a.tsv": "Text\tEND\tstart\tSpeaker\n" + "".join(f"{t}\t{e}\t{s}\t{who}\n" for s, e, who, t in TURNS),
    "a.jsonl": "".join(
        json.dumps({"start": s, "end": e, "speaker": who, "text": t}) + "\n" for s, e, who, t in TURNS
    ),
    "a.rttm": ";; x\nSPKR-INFO a 1 <NA> <NA> <NA> unknown anna <NA> <NA>\n"
    + "".join(f"SPEAKER a 1 {s} {e - s} <NA> <NA> {who} <NA> <NA>\n" for s, e, who, _ in TURNS),
    "a.srt": "\ufeff" + SRT.replace("no, never", "<i>no,</i>\nnever").replace("\n", "\r\n"),
    "b.srt": SRT.replace("well", "[SPEAKER_00]: well"),
    "a.vtt": "WEBVTT - x\nKind: captions\n\nNOTE by hand\n\nSTYLE\n::cue {color: red}\n\n"
    + "".join(f"{clock(s, '.')} --> {clock(e, '.')} align:start\n<v {who}>{t}</v>\n\n" for s, e, who, t in TURNS),
    "b.vtt": "WEBVTT\n\n00:00.500 --> 00:02.250\nwell &amp; then\n",
    "a.json": whisper_json(),
    "pyannote.json": json.dumps({"diarization": [{"start": s, "end": e, "speaker": w} for s, e, w, _ in TURNS]}),
    "api.json": json.dumps({"jobId": "x", "output": {"diarization": [{"speaker": "anna", "start": 1, "end": 2}]}}),
    "core.json": json.dumps({"pyannote": "Annotation", "uri": "a", "content": [
        {"segment": {"start": s, "end": e}, "track": "A", "label": who} for s, e, who, _ in TURNS]}),
    "hf.json": json.dumps({"text": "", "chunks": [{"timestamp": [s, e], "text": t} for s, e, _, t in TURNS]}),
    "list.json": json.dumps([{"start": s, "end": e} for s, e, _, _ in TURNS]),
    "a.txt": "".join(f"{s:.6f}\t{e:.6f}\t{t}\n\\\t100.0\t2000.0\n" for s, e, _, t in TURNS),
    "a.TextGrid": textgrid_text(),
    "short.TextGrid": textgrid_text(short=True),
    "a.eaf": EAF,
}  # fmt: skip
