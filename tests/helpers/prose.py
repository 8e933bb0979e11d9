"""Plain prose, about half a minute of speech in each of twelve languages, written for the tests."""

from __future__ import annotations

PROSE = {
    "en": (
        "Yesterday morning the ferry was late again, so we waited on the quay and talked about the "
        "weather. An old man sold oranges from a cart, and two children were feeding the gulls. "
        "When the boat finally came, nobody complained; the captain waved, the ropes were thrown, "
        "and within an hour we saw the harbour lights behind us. My sister had brought a book, but "
        "she fell asleep before the second page, and I counted the islands until it was dark."
    ),
    "de": (
        "Gestern früh kam die Fähre wieder zu spät, also warteten wir am Kai und sprachen über das "
        "Wetter. Ein alter Mann verkaufte Orangen von einem Karren, und zwei Kinder fütterten die "
        "Möwen. Als das Schiff endlich anlegte, beschwerte sich niemand; der Kapitän winkte, die "
        "Taue flogen herüber, und nach einer Stunde lagen die Lichter des Hafens hinter uns. Meine "
        "Schwester schlief über ihrem Buch ein, und ich zählte die Inseln, bis es dunkel wurde."
    ),
    "ru": (
        "Вчера утром паром опять опоздал, поэтому мы ждали на причале и говорили о погоде. Старик "
        "продавал апельсины с тележки, а двое детей кормили чаек. Когда судно наконец подошло, "
        "никто не жаловался: капитан помахал рукой, матросы бросили канаты, и через час огни порта "
        "остались позади. Сестра взяла с собой книгу, но уснула на второй странице, а я считал "
        "острова, пока совсем не стемнело."
    ),
    "hi": (
        "कल सुबह नाव फिर देर से आई, इसलिए हम घाट पर खड़े होकर मौसम की बातें करते रहे। एक बूढ़ा आदमी ठेले पर "
        "संतरे बेच रहा था और दो बच्चे पक्षियों को दाना खिला रहे थे। जब नाव आखिरकार पहुँची तो किसी ने शिकायत नहीं "
        "की; कप्तान ने हाथ हिलाया, रस्सियाँ फेंकी गईं और एक घंटे में बंदरगाह की रोशनी पीछे छूट गई। मेरी बहन किताब "
        "लाई थी, मगर दूसरे पन्ने से पहले ही सो गई, और मैं अँधेरा होने तक द्वीप गिनता रहा।"
    ),
    "bn": (
        "গতকাল সকালে ফেরি আবার দেরি করল, তাই আমরা ঘাটে দাঁড়িয়ে আবহাওয়া নিয়ে গল্প করছিলাম। এক বৃদ্ধ লোক ঠেলাগাড়িতে "
        "কমলা বিক্রি করছিলেন, আর দুটি শিশু পাখিদের খাওয়াচ্ছিল। শেষে যখন জাহাজ এল, কেউ অভিযোগ করল না; নাবিক হাত "
        "নাড়লেন, দড়ি ছোঁড়া হল, এবং এক ঘণ্টার মধ্যে বন্দরের আলো পিছনে মিলিয়ে গেল। আমার বোন বই এনেছিল, কিন্তু দ্বিতীয় "
        "পাতার আগেই ঘুমিয়ে পড়ল, আর আমি অন্ধকার না হওয়া পর্যন্ত দ্বীপ গুনলাম।"
    ),
    "ta": (
        "நேற்று காலை படகு மீண்டும் தாமதமாக வந்தது, அதனால் நாங்கள் துறைமுகத்தில் நின்று வானிலையைப் பற்றிப் பேசினோம். "
        "ஒரு முதியவர் வண்டியில் ஆரஞ்சுப் பழங்கள் விற்றார், இரண்டு குழந்தைகள் பறவைகளுக்கு உணவளித்தனர். கடைசியில் கப்பல் "
        "வந்தபோது யாரும் குறை சொல்லவில்லை; மாலுமி கையசைத்தார், கயிறுகள் வீசப்பட்டன, ஒரு மணி நேரத்தில் விளக்குகள் "
        "மறைந்தன. என் தங்கை புத்தகம் கொண்டுவந்தாள், ஆனால் இரண்டாம் பக்கத்திலேயே தூங்கிவிட்டாள்."
    ),
    "th": (
        "เมื่อวานตอนเช้าเรือข้ามฟากมาสายอีกแล้ว พวกเราจึงยืนรอที่ท่าเรือและคุยกันเรื่องอากาศ ชายชราคนหนึ่งขายส้มจากรถเข็น "
        "ส่วนเด็กสองคนกำลังให้อาหารนกนางนวล พอเรือมาถึงก็ไม่มีใครบ่น กัปตันโบกมือ ลูกเรือโยนเชือก และภายในหนึ่งชั่วโมง "
        "แสงไฟของเมืองก็อยู่ข้างหลัง น้องสาวเอาหนังสือมาด้วยแต่หลับไปก่อนจะอ่านถึงหน้าที่สอง ฉันเลยนั่งนับเกาะไปจนฟ้ามืด"
    ),
    "ka": (
        "გუშინ დილით ბორანმა ისევ დაიგვიანა, ამიტომ ნავმისადგომზე ველოდით და ამინდზე ვსაუბრობდით. მოხუცი კაცი ურიკიდან "
        "ფორთოხალს ყიდდა, ორი ბავშვი კი თოლიებს აჭმევდა. როცა გემი ბოლოს მოვიდა, არავის უჩივლია: კაპიტანმა ხელი "
        "დაგვიქნია, თოკები გადმოაგდეს და ერთ საათში ნავსადგურის შუქები უკან დაგვრჩა. ჩემმა დამ წიგნი წამოიღო, მაგრამ "
        "მეორე გვერდამდე ჩაეძინა, მე კი კუნძულებს ვითვლიდი, სანამ დაბნელდებოდა."
    ),
    "my": (
        "မနေ့မနက်က ကူးတို့သင်္ဘော နောက်ကျပြန်သောကြောင့် ဆိပ်ကမ်းတွင် စောင့်ရင်း ရာသီဥတုအကြောင်း ပြောဖြစ်ကြသည်။ "
        "အဘိုးအိုတစ်ဦးက လှည်းပေါ်မှ လိမ္မော်သီးများ ရောင်းနေပြီး ကလေးနှစ်ယောက်က ဇင်ယော်ငှက်တို့ကို အစာကျွေးနေကြသည်။ "
        "သင်္ဘောရောက်လာသောအခါ မည်သူမျှ မညည်းညူကြပါ၊ ကပ္ပတိန်က လက်ပြသည်၊ ကြိုးများ ပစ်ချသည်၊ တစ်နာရီအတွင်း မီးရောင်များ "
        "ပျောက်ကွယ်သွားသည်။ ညီမလေးမှာ စာအုပ်ဖတ်ရင်း အိပ်ပျော်သွားပြီး ကျွန်တော်က ကျွန်းများကို ရေတွက်နေခဲ့သည်။"
    ),
    "zh": (
        "昨天早上渡船又晚点了,我们只好站在码头上聊天气。一位老人推着小车卖橘子,两个孩子正在喂海鸥。船终于靠岸的时候,没有人抱怨;"
        "船长挥了挥手,水手抛出缆绳,不到一个钟头,港口的灯火就留在了身后。妹妹带了一本书,还没看到第二页就睡着了,"
        "我一个人数着远处的小岛,直到天完全黑下来。"
    ),
    "ja": (
        "昨日の朝はまた渡し船が遅れて、私たちは桟橋で天気の話をしながら待っていました。おじいさんが屋台でみかんを売り、"
        "子どもが二人かもめに餌をやっていました。ようやく船が着いたとき、文句を言う人はいませんでした。船長が手を振り、"
        "綱が投げられ、一時間もすると港の明かりは後ろに遠ざかりました。妹は本を持ってきたのに二ページ目で眠ってしまい、"
        "私は暗くなるまで島を数えていました。"
    ),
    "ar": (
        "تأخرت العبّارة صباح أمس مرة أخرى، فانتظرنا على الرصيف وتحدثنا عن الطقس. كان رجل عجوز يبيع البرتقال على عربته، "
        "وطفلان يطعمان النوارس. وعندما وصلت السفينة أخيراً لم يشتكِ أحد؛ لوّح القبطان بيده، وأُلقيت الحبال، وبعد ساعة "
        "صارت أضواء الميناء خلفنا. أحضرت أختي كتاباً لكنها نامت قبل الصفحة الثانية، أما أنا فعددت الجزر حتى حلّ الظلام."
    ),
}

# Said on purpose, with a refrain in every sentence.
REFRAINS = (
    "We will build the school, because a village without a school has no tomorrow. We will build "
    "the well, because a village without a well has no today. We will build the road, because a "
    "village without a road has no neighbours. And when they ask us who paid for it, we will say: "
    "we did. And when they ask us who wanted it, we will say: we did. And when they ask us who "
    "will keep it, we will say: we will.",
    "Some say it is too early. I say it is late. Some say it is too dear. I say it is cheap. Some "
    "say it is too far. I say it is near. Let them come and see the school, let them come and see "
    "the well, let them come and see the road, and then let them say it again.",
    "One child with one book, one teacher with one lamp, one evening in one winter: that is how it "
    "began. Two children with two books, two teachers with two lamps: that is how it went on. Ten "
    "children, ten books, ten lamps: that is where we are tonight, and tomorrow we will be twenty.",
)
